"""Draws a sheet of requests with a row for each person: photo and found face, landmark picture, results."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from instantid.faces.landmark_picture import COLOURS, draw_landmarks, place_landmarks
from instantid.photos import resized_size
from instantid_client import FaceReport, GenerationResult

SIDE, TITLE = 256, 28


def draw_sheet(rows: Sequence[tuple[np.ndarray, Sequence[GenerationResult]]], titles: Sequence[str]) -> Image.Image:
    """Draw a row for each pose photo, HWC RGB uint8, and its results, which all have one size. `titles` are written
    above the results."""
    panels = [_panels(photo, results) for photo, results in rows]
    widths = [max(row[i].width for row in panels) for i in range(len(panels[0]))]
    sheet = Image.new("RGB", (sum(widths), TITLE + SIDE * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, title in enumerate(("photo", "landmarks", *titles)):
        draw.text((sum(widths[:i]) + 6, 8), title, fill="black")
    for row, each in enumerate(panels):
        for i, panel in enumerate(each):
            sheet.paste(panel, (sum(widths[:i]), TITLE + SIDE * row))
    return sheet


def mark_face(photo: np.ndarray, face: FaceReport) -> Image.Image:
    image = Image.fromarray(photo).convert("RGB")
    draw = ImageDraw.Draw(image)
    thickness = max(image.width // 200, 1)
    draw.rectangle(list(face.box), outline="white", width=thickness)
    for (x, y), colour in zip(face.landmarks, COLOURS, strict=True):
        draw.ellipse([x - 2 * thickness, y - 2 * thickness, x + 2 * thickness, y + 2 * thickness], fill=colour)
    return image


def landmark_picture(width: int, height: int, face: FaceReport, size: tuple[int, int]) -> Image.Image:
    """Draw IdentityNet's input again from the face report; `size` is the size of the result."""
    resized = resized_size(width, height)[1]
    scale = np.array([resized[0] / width, resized[1] / height])
    landmarks = (np.array(face.landmarks) * scale).astype(np.float32)
    return Image.fromarray(draw_landmarks(place_landmarks(landmarks, resized, size), *size))


def _panels(photo: np.ndarray, results: Sequence[GenerationResult]) -> list[Image.Image]:
    pictures = [Image.open(io.BytesIO(result.images[0])).convert("RGB") for result in results]
    face = results[0].face
    landmarks = landmark_picture(photo.shape[1], photo.shape[0], face, pictures[0].size)
    return [_fit(panel) for panel in (mark_face(photo, face), landmarks, *pictures)]


def _fit(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * SIDE / image.height), SIDE), Image.Resampling.LANCZOS)
