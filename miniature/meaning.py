"""Measures on a running server whether the miniature does what InstantID is for, with people that no training uses.

`python -m miniature.meaning` serves the miniature, requests pictures, and prints each figure with its distribution.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid_client import InstantIDClient
from miniature import SIZE, UNSEEN, ImageArray
from miniature.album import Page, draw_page
from miniature.drawing import as_png
from miniature.judge import DetectedFace, Judge, auc
from miniature.people import random_identity
from miniature.scenery import SCENERY

FloatArray = npt.NDArray[np.floating[Any]]
PHOTO_SIDE = 256
CALLERS = 8
PHOTOS, REFERENCES = 2, 3
CHANGES: Mapping[str, dict[str, Any]] = {
    "ip_adapter_scale 0": {"ip_adapter_scale": 0.0},
    "controlnet_conditioning_scale 0": {"controlnet_conditioning_scale": 0.0},
    "no face": {"ip_adapter_scale": 0.0, "controlnet_conditioning_scale": 0.0},
    "another seed": {"other_seed": 4900},
    "another photo": {"photos": (1,)},
    "both photos": {"photos": (0, 1)},
}
CLOTHES = ("red suit", "blue crew neck", "white turtleneck", "black v-neck")


@dataclass(frozen=True)
class Stranger:
    """A person that no training uses: photos to send, and the mean embedding of further photos, of length 1."""

    photos: Sequence[Page]
    reference: FloatArray


@dataclass(frozen=True)
class PaintedPicture:
    """A picture, what it was to show (landmarks as the server found them in the pose photo), and its largest face."""

    picture: ImageArray
    place: str
    landmarks: FloatArray
    face: DetectedFace | None

    @property
    def embedding(self) -> FloatArray:
        return self.face.embedding if self.face else np.zeros(512, np.float32)

    @property
    def pose_error(self) -> float:
        """Mean distance from the pose photo's landmarks, in eye distances; 1 if there is no face."""
        if self.face is None:
            return 1.0
        eyes = np.linalg.norm(self.landmarks[0] - self.landmarks[1])
        return float(np.linalg.norm(self.face.landmarks - self.landmarks, axis=-1).mean() / eyes)


@dataclass(frozen=True)
class Measurements:
    """Two pictures of each stranger with different scenes, poses and seeds, and pictures with one change each."""

    strangers: Sequence[Stranger]
    pairs: Sequence[tuple[PaintedPicture, PaintedPicture]]
    changed: Mapping[str, Sequence[PaintedPicture]]
    judge: Judge

    @cached_property
    def cosines(self) -> tuple[FloatArray, FloatArray]:
        """Cosines of two pictures of one person, and of pictures of two people."""
        return _cosines([pair[0] for pair in self.pairs], [pair[1] for pair in self.pairs])

    def cosines_changed(self, name: str) -> tuple[FloatArray, FloatArray]:
        """The same, with the named change in one picture of each pair."""
        chosen = self.changed[name]
        return _cosines([pair[0] for pair in self.pairs[: len(chosen)]], chosen)

    def likeness(self, pictures: Sequence[PaintedPicture]) -> FloatArray:
        """Cosine of each picture with the reference of its stranger."""
        strangers = self.strangers[: len(pictures)]
        return np.array([p.embedding @ s.reference for p, s in zip(pictures, strangers, strict=True)])

    @property
    def pictures(self) -> list[PaintedPicture]:
        return [picture for pair in self.pairs for picture in pair]

    @property
    def right_places(self) -> float:
        return float(np.mean([self.judge.place(painted.picture) == painted.place for painted in self.pictures]))


def measure(
    client: InstantIDClient, judge: Judge, people: int = 20, changed: int = 12, steps: int = 20, first: int = UNSEEN
) -> Measurements:
    """Request `2 * people` pictures, and `changed` pictures with each change, from CALLERS threads at once."""
    strangers = [_make_stranger(judge, first + i) for i in range(people)]
    requests = Requests(client, judge, strangers, steps)
    plans: dict[str, list[dict[str, Any]]] = {
        "first": [{"person": i} for i in range(people)],
        "second": [{"person": i, "take": 1} for i in range(people)],
        **{name: [{"person": i, "take": 1, **change} for i in range(changed)] for name, change in CHANGES.items()},
    }
    with ThreadPoolExecutor(CALLERS) as pool:
        waiting = {name: [pool.submit(requests.paint, **plan) for plan in each] for name, each in plans.items()}
        futures = [future for each in waiting.values() for future in each]
        for _ in track(as_completed(futures), "painting", len(futures), console=Console(stderr=True)):
            pass
        painted = {name: [future.result() for future in futures] for name, futures in waiting.items()}
    pairs = list(zip(painted.pop("first"), painted.pop("second"), strict=True))
    return Measurements(strangers, pairs, painted, judge)


@dataclass(frozen=True)
class Requests:
    client: InstantIDClient
    judge: Judge
    strangers: Sequence[Stranger]
    steps: int

    def paint(
        self, person: int, take: int = 0, photos: tuple[int, ...] = (0,), other_seed: int = 0, **options: Any
    ) -> PaintedPicture:
        """Request a stranger in the scene and pose of a take. The pose is that of another stranger's photo."""
        place = SCENERY[(person + 3 * take) % len(SCENERY)]
        posed = self.strangers[(person + 1 + take) % len(self.strangers)].photos[take]
        result = self.client.generate(
            [as_png(self.strangers[person].photos[i].picture) for i in photos],
            f"a photo of a person, {CLOTHES[(person + take) % len(CLOTHES)]}, {place}",
            pose_photo=as_png(posed.picture),
            width=SIZE,
            height=SIZE,
            num_inference_steps=self.steps,
            seed=100 * take + person + other_seed,
            **options,
        )
        picture = np.asarray(Image.open(io.BytesIO(result.images[0])).convert("RGB"))
        asked = np.array(result.face.landmarks) * SIZE / PHOTO_SIDE
        return PaintedPicture(picture, place, asked, self.judge.largest_face(picture))


def _make_stranger(judge: Judge, person: int) -> Stranger:
    identity = random_identity(person)
    pages = [draw_page(identity, 10 * person + i, PHOTO_SIDE, style="photo") for i in range(PHOTOS + REFERENCES)]
    seen = [judge.largest_face(page.picture) for page in pages[PHOTOS:]]
    mean = np.mean([face.embedding for face in seen if face], axis=0)
    return Stranger(pages[:PHOTOS], mean / np.linalg.norm(mean))


def _cosines(one: Sequence[PaintedPicture], other: Sequence[PaintedPicture]) -> tuple[FloatArray, FloatArray]:
    table = np.stack([p.embedding for p in one]) @ np.stack([p.embedding for p in other]).T
    return table.diagonal(), table[~np.eye(len(table), dtype=bool)]


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the miniature.")] = Path("weights/miniature"),
    people: int = 40,
    steps: int = 20,
    first: Annotated[int, typer.Option(help="Number of the first person; no training uses 90000 and more.")] = UNSEEN,
) -> None:
    """Print 10 %, median and 90 % of each distribution."""
    judge = Judge(weights / "face_analysis.onnx")
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(project_options(weights, Path(folder))) as server,
        InstantIDClient(server.grpc_url, timeout=600) as client,
    ):
        findings = measure(client, judge, people, people, steps, first)
    Console().print(_table(findings))


def _table(findings: Measurements) -> Table:
    table = Table("what", "figure", "10 %", "median", "90 %", box=None)

    def row(name: str, values: FloatArray, figure: str = "") -> None:
        table.add_row(name, figure, *(f"{value:.3f}" for value in np.quantile(values, (0.1, 0.5, 0.9))))

    for name, (same, different) in {
        "two pictures": findings.cosines,
        **{name: findings.cosines_changed(name) for name in findings.changed},
    }.items():
        row(f"{name}: cosine, one person", same, f"AUC {auc(same, different):.3f}")
        row(f"{name}: cosine, two people", different)
    second = [pair[1] for pair in findings.pairs]
    for name, pictures in {"second picture": second, **findings.changed}.items():
        row(f"{name}: likeness to further photos", findings.likeness(pictures))
        row(f"{name}: landmarks, eye distances", np.array([p.pose_error for p in pictures]))
    error = np.mean([picture.pose_error for picture in findings.pictures])
    table.add_row("both pictures: landmarks, eye distances, mean", f"{error:.3f}")
    table.add_row("places as the prompt says", f"{findings.right_places:.1%}")
    table.add_row("no face found", f"{sum(p.face is None for p in findings.pictures)} of {len(findings.pictures)}")
    return table


if __name__ == "__main__":
    typer.run(main)
