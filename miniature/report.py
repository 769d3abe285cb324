"""Reports the trainings in WORK and the quality of the shipped face networks.

`python -m miniature.report WORK` writes the curves, a sheet for each training, `found.jpg` (the detector on
photographs and drawn pictures) and `people.png` (the recogniser on strangers), and prints how many faces are found.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import skimage.data
import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from rich.table import Table

from instantid.contract import CANVAS
from miniature import UNSEEN, ImageArray
from miniature.album import draw_page
from miniature.judge import Judge, auc
from miniature.people import random_identity

CONSOLE = Console(stderr=True)
TRAININGS = ("detector", "recogniser", "vae", "base", "identity")
FACELESS = (
    "brick", "cell", "chelsea", "clock", "coffee", "coins", "grass", "gravel", "horse", "hubble_deep_field",
    "immunohistochemistry", "moon", "page", "retina", "rocket", "text",
)  # fmt: skip
"""Pictures without a face in scikit-image's package."""
ASTRONAUT = ((181, 78, 271, 179),)
GROUP = (
    (62, 275, 169, 401), (277, 155, 375, 272), (468, 272, 575, 410),
    (718, 336, 863, 507), (895, 55, 1028, 215), (1120, 281, 1226, 407),
)  # fmt: skip
"""Boxes of the faces of scikit-image's astronaut and of insightface's `t1.jpg`, in pixels."""


def main(
    work: Path,
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/miniature"),
    weights: Annotated[Path, typer.Option(help="Folder of the miniature.")] = Path("weights/miniature"),
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    draw_curves(work, output / "curves.png")
    for name in TRAININGS:
        if (work / f"{name}.png").exists():
            Image.open(work / f"{name}.png").convert("RGB").save(output / f"{name}.jpg", quality=90)
    judge = Judge(weights / "face_analysis.onnx")
    draw_found(judge, output / "found.jpg")
    draw_people(judge, output / "people.png")
    Console().print(_found(judge))


def draw_curves(work: Path, path: Path) -> None:
    """Plot the curve of each training in `work`; a point is the mean loss since the point before."""
    from matplotlib.figure import Figure

    curves = {name: work / f"{name}.json" for name in TRAININGS if (work / f"{name}.json").exists()}
    figure = Figure(figsize=(3.6 * len(curves), 2.8), layout="constrained")
    for axes, (name, file) in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves.items(), strict=True):
        steps, losses = zip(*json.loads(file.read_text()), strict=True)
        axes.semilogy(steps, losses)
        axes.set(title=name, xlabel="step", ylabel="loss")
        axes.grid(which="both", alpha=0.3)
    figure.savefig(path, dpi=100)


def draw_found(judge: Judge, path: Path, side: int = 320) -> None:
    """Draw the boxes found in the astronaut's and the group's photo and in four drawn pictures."""
    drawn = [draw_page(random_identity(seed), seed, side).picture for seed in range(UNSEEN, UNSEEN + 4)]
    panels = []
    for picture in (skimage.data.astronaut(), group_photo(), *drawn):
        image = Image.fromarray(picture)
        for box in judge.detect(picture):
            ImageDraw.Draw(image).rectangle(box.tolist(), outline="red", width=max(image.height // 150, 2))
        panels.append(np.asarray(image.resize((round(side * image.width / image.height), side))))
    Image.fromarray(np.concatenate(panels, axis=1)).save(path, quality=90)


def draw_people(judge: Judge, path: Path, people: int = 60, photos: int = 4) -> None:
    """Plot histograms of the cosines of two photos of one stranger, and of photos of two strangers."""
    from matplotlib.figure import Figure

    pages = [draw_page(random_identity(UNSEEN + i), 10 * i + j, 256) for i in range(people) for j in range(photos)]
    faces = [judge.largest_face(page.picture) for page in track(pages, "recogniser", console=CONSOLE)]
    found = [(i // photos, face.embedding) for i, face in enumerate(faces) if face]
    who, embeddings = np.array([person for person, _ in found]), np.stack([embedding for _, embedding in found])
    cosines, pairs = embeddings @ embeddings.T, np.triu(np.ones((len(who), len(who)), bool), 1)
    same, different = (cosines[pairs & (kind == (who[:, None] == who))] for kind in (True, False))
    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axes = figure.subplots()
    for values, label in ((same, "one stranger"), (different, "two strangers")):
        axes.hist(values, bins=np.linspace(-0.5, 1, 61), density=True, alpha=0.6, label=label)
    missed = len(pages) - len(found)
    title = f"AUC {auc(same, different):.4f}, {people} strangers, {photos} photos each, {missed} without a face found"
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("cosine")
    axes.legend()
    figure.savefig(path, dpi=100)


def count_found(judge: Judge, picture: ImageArray, faces: Sequence[Sequence[float]]) -> tuple[int, int]:
    """Number of faces found at the served threshold (IoU above 0.4), and number of false finds."""
    boxes = judge.detect(picture)
    overlaps = np.array([[_overlap(np.array(face), box) for box in boxes] for face in faces])
    hits = overlaps.reshape(len(faces), len(boxes)) > 0.4
    return int(hits.any(1).sum()), int((~hits.any(0)).sum())


def group_photo() -> ImageArray:
    import insightface

    return np.asarray(Image.open(Path(insightface.__file__).parent / "data/images/t1.jpg").convert("RGB"))


def faceless(name: str) -> ImageArray:
    picture: npt.NDArray[Any] = getattr(skimage.data, name)()
    picture = picture * np.uint8(255) if picture.dtype == bool else picture
    image = Image.fromarray(picture).convert("RGB")
    image.thumbnail((CANVAS, CANVAS))
    return np.asarray(image)


def _found(judge: Judge) -> Table:
    table = Table("picture", "faces", "found", "false finds", box=None)
    known = {"astronaut": (skimage.data.astronaut(), ASTRONAUT), "insightface's t1.jpg": (group_photo(), GROUP)}
    for name, (picture, faces) in {**known, **{name: (faceless(name), ()) for name in FACELESS}}.items():
        found, wrong = count_found(judge, picture, faces)
        table.add_row(name, str(len(faces)), str(found), str(wrong))
    return table


def _overlap(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    inter = np.maximum(0, np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])).prod()
    return float(inter / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - inter))


if __name__ == "__main__":
    typer.run(main)
