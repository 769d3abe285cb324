"""Measures whether faces that fill the frame are still recognised: the miniature's networks, drawn people and a photo.

`python bench/close_ups.py` cuts portraits ever closer around the face and prints the cosine between the embedding of
the crop's largest face and that of the whole portrait, for each way of looking.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import skimage.data
import typer
from face_parity import Found, FusedGraph, Picture, cosine, overlap
from insightface.app import FaceAnalysis
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from build_tools.face_graph import build_face_graph
from instantid.photos import resize_photo
from miniature import faces
from miniature.album import draw_page
from miniature.people import random_identity

ASTRONAUT = np.array((178, 63, 275, 178), np.float32)
"""The face in scikit-image's astronaut."""
MARGINS = (0.5, 0.25, 0.1, 0.0, -0.08, -0.15)
"""Margins on each side of the face box, relative to its size."""
PIXELS = (20, 10, 0, -15)
"""Margins of the astronaut's crops in pixels."""
CPU = ["CPUExecutionProvider"]
Look = Callable[[Picture], Found]


def crop(picture: Picture, box: NDArray[np.float32], margin: float) -> tuple[Picture, NDArray[np.float32]]:
    """The picture around the box, with a margin of so much of the box on each side, and the box in it."""
    sides = np.tile(box[2:] - box[:2], 2) * (-1, -1, 1, 1)
    x0, y0, x1, y1 = np.clip(box + margin * sides, 0, np.tile(picture.shape[1::-1], 2)).astype(int)
    return np.ascontiguousarray(picture[y0:y1, x0:x1]), box - np.tile((x0, y0), 2).astype(np.float32)


def bordered(picture: Picture) -> Picture:
    """The picture in a grey border of its own size on each side."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((height, height), (width, width), (0, 0)), constant_values=128)


def largest(look: Look, picture: Picture) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Box, as parts of the picture's sides, and embedding; the picture is resized as intake does."""
    resized = resize_photo(picture, picture.shape[1::-1])
    found = look(resized)
    if not len(found.scores):
        return None
    chosen = found.areas.argmax()
    return found.boxes[chosen] / np.tile(resized.shape[1::-1], 2), found.embeddings[chosen]


def ways(folder: Path) -> dict[str, Look]:
    """Each way of looking at a photo, with the miniature's networks."""
    faces.write_detector(folder / "detector.onnx")
    faces.write_recogniser(folder / "recogniser.onnx")
    analysis = FaceAnalysis(name=str(folder), providers=CPU)
    analysis.prepare(ctx_id=0)
    looks: dict[str, Look] = {}
    for detection, border in (("reference", "black"), ("surest", "black"), ("surest", "edge")):
        path = folder / f"{detection}-{border}.onnx.graph"
        build_face_graph(folder / "detector.onnx", folder / "recogniser.onnx", path, detection=detection, border=border)
        looks[f"{detection}, {border}"] = FusedGraph(path, CPU, 1).find
    looks["insightface >= 1.0"] = lambda picture: merged(analysis, picture)
    looks["reference in a border"] = looks["reference, black"]
    return looks


def merged(analysis: FaceAnalysis, picture: Picture) -> Found:
    """insightface's own default: candidates of 128 and 640 in one suppression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found = analysis.get(np.ascontiguousarray(picture[:, :, ::-1]))
    boxes, embeddings = (np.array([face[key] for face in found], np.float32) for key in ("bbox", "embedding"))
    scores = np.array([face["det_score"] for face in found], np.float32)
    return Found(boxes.reshape(-1, 4), scores, np.zeros((len(found), 5, 2), np.float32), embeddings, 0)


def portraits(people: int) -> Iterator[tuple[Picture, NDArray[np.float32]]]:
    for number in range(90_000, 90_000 + people):
        page = draw_page(random_identity(number), number, 640, style="photo")
        yield page.picture, page.box


def compare(
    look: Look, picture: Picture, box: NDArray[np.float32], margins: tuple[float, ...], in_border: bool
) -> list[tuple[float, bool]]:
    """Per margin: cosine of the crop's largest face to the whole picture's, and whether its box is the face's."""
    whole, rows = largest(look, picture), []
    for margin in margins:
        part, place = crop(picture, box, margin)
        if in_border:
            part, place = bordered(part), place + np.tile(part.shape[1::-1], 2).astype(np.float32)
        found = largest(look, part)
        if whole is None or found is None:
            rows.append((-1.0, False))
        else:
            right = overlap(found[0] * np.tile(part.shape[1::-1], 2), place) > 0.5
            rows.append((cosine(whole[1], found[1]), right))
    return rows


def main(people: Annotated[int, typer.Option(min=1, help="Drawn people, none of them trained on.")] = 30) -> None:
    """Print one table for drawn people and one row each for the astronaut's crops."""
    table = Table(title=f"{people} drawn people: median / lowest tenth of the cosine, wrong faces; then the astronaut")
    with tempfile.TemporaryDirectory() as folder:
        looks = ways(Path(folder))
        for column in ("margin", *looks):
            table.add_column(column, justify="right")
        drawn, cells = list(portraits(people)), []
        for name, look in track(looks.items(), "looking", console=Console(stderr=True)):
            in_border = name.endswith("border")
            rows = np.array([compare(look, *portrait, MARGINS, in_border) for portrait in drawn])
            column = [
                f"{np.median(cosines):.2f} / {np.quantile(cosines, 0.1):.2f}, {int((1 - right).sum())}"
                for cosines, right in rows.transpose(1, 2, 0)
            ]
            for pixels in PIXELS:
                box = ASTRONAUT + np.array((-1, -1, 1, 1), np.float32) * pixels
                column.append(f"{compare(look, skimage.data.astronaut(), box, (0,), in_border)[0][0]:.2f}")
            cells.append(column)
    names = (*(f"{margin:.0%}" for margin in MARGINS), *(f"{pixels} px" for pixels in PIXELS))
    for row in zip(names, *cells, strict=True):
        table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
