"""A sheet that shows one request: photo with the face that was found, landmark picture, result."""

import io

import numpy as np
from PIL import Image, ImageDraw

from instantid.faces.landmark_picture import COLOURS, draw_landmarks
from instantid.faces.placement import place
from instantid.images import resized_size
from instantid_client import FaceReport, GenerationResult

SIDE = 512


def draw_sheet(photo: np.ndarray, result: GenerationResult) -> Image.Image:
    """Side by side, each fitted into 512 pixels of height; `photo` is the pose photo, HWC RGB uint8."""
    pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in result.images]
    landmarks = landmark_picture(photo.shape[1], photo.shape[0], result.face, pictures[0].size)
    panels = [_fit(panel) for panel in (mark_face(photo, result.face), landmarks, *pictures)]
    sheet = Image.new("RGB", (sum(panel.width for panel in panels), SIDE), "white")
    x = 0
    for panel in panels:
        sheet.paste(panel, (x, 0))
        x += panel.width
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
    """The picture that IdentityNet saw, drawn again from the face report; `size` is the result's."""
    resized = resized_size(width, height)[1]
    scale = np.array([resized[0] / width, resized[1] / height])
    landmarks = (np.array(face.landmarks) * scale).astype(np.float32)
    return Image.fromarray(draw_landmarks(place(resized, size).apply(landmarks), *size))


def _fit(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * SIDE / image.height), SIDE), Image.Resampling.LANCZOS)
