"""Train the miniature recogniser with ArcFace's loss (Deng et al., 2019) on drawn people.

`python -m miniature.train_recogniser WORK` goes on from its checkpoint. People from number 100000 on are kept for
measuring. The weights that ship were trained with a one-cycle learning rate and are those of the last step.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from miniature.aligned_faces import SIDE, aligned_picture
from miniature.drawing import cached_arrays, draw_all
from miniature.recogniser import EMBEDDING, INPUT_MEAN, INPUT_STD, Recogniser
from miniature.training import Trainer, load_float16, write_float16

SCALE, MARGIN = 24.0, 0.35
SOFT = 0.5
"""Share of the faces that are blurred or made of fewer pixels."""
STRETCH = 0.04
"""Standard deviation of each number of the stretching matrix."""


class ArcFace(nn.Module):
    """Softmax over persons of `SCALE * cos(angle + margin)` for the right one."""

    def __init__(self, persons: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(persons, EMBEDDING))

    def forward(self, embeddings: Tensor, persons: Tensor, margin: float) -> Tensor:
        cosine = functional.linear(functional.normalize(embeddings), functional.normalize(self.centres))
        angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        chosen = functional.one_hot(persons, len(self.centres)).bool()
        logits = torch.where(chosen, (angle + margin).clamp(max=torch.pi).cos(), cosine)
        return functional.cross_entropy(SCALE * logits, persons)


def _shots(person: int, shots: int) -> npt.NDArray[np.uint8]:
    return np.stack([aligned_picture(person, shot) for shot in range(shots)])


def make_faces(folder: Path, people: int, shots: int) -> npt.NDArray[np.uint8]:
    """Pictures `[people, shots, 112, 112, 3]` uint8 RGB, kept on disk."""

    def draw() -> dict[str, npt.NDArray]:
        return {"faces": np.stack(list(draw_all(partial(_shots, shots=shots), range(people), "drawing")))}

    return cached_arrays(folder / f"recogniser-{people}x{shots}.npz", draw)["faces"]


def batch_of(faces: npt.NDArray[np.uint8], step: int, size: int) -> tuple[Tensor, Tensor]:
    """Batch number `step`: faces `[size, 3, 112, 112]` as the recogniser takes them, and persons `[size]`."""
    rng = np.random.default_rng([step, 0xAB])
    persons = rng.integers(len(faces), size=size)
    pictures = faces[persons, rng.integers(faces.shape[1], size=size)].astype(np.float32)
    flips = rng.random(size) < 0.5
    pictures[flips] = pictures[flips, :, ::-1]
    pictures = np.stack([_soften(picture, rng) if rng.random() < SOFT else picture for picture in pictures])
    pictures = np.stack([_stretch(picture, rng) for picture in pictures])
    pictures = pictures * rng.uniform(0.9, 1.1, (size, 1, 1, 1)) + rng.normal(0, 6, (size, 1, 1, 1))
    images = torch.from_numpy(np.clip(pictures, 0, 255)).permute(0, 3, 1, 2).float()
    images = ((images - INPUT_MEAN) / INPUT_STD).contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(persons)


def _stretch(picture: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Wider, narrower and sheared by a few per cent: as a face is that was painted to another's landmarks."""
    matrix = np.eye(2) + rng.normal(0, STRETCH, (2, 2))
    shift = (np.eye(2) - matrix) @ (56, 64) + rng.normal(0, 1, 2)
    return np.asarray(
        cv2.warpAffine(picture, np.column_stack([matrix, shift]), (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
    )


def _soften(picture: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Blurred, or made of fewer pixels: as a small or a painted face is."""
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.7, 4.5))), np.float32)
    side = int(rng.integers(18, 80))
    small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), np.float32)


def main(
    work: Path,
    steps: int = 2500,
    batch: int = 64,
    rate: float = 3e-3,
    people: int = 1600,
    shots: int = 10,
    start: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
) -> None:
    """The margin grows from 0 over the first half of the steps."""
    torch.manual_seed(0)
    faces = make_faces(work, people, shots)
    recogniser, arcface = load_float16(Recogniser(), start) if start else Recogniser(), ArcFace(people)
    recogniser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int) -> Tensor:
        pictures, persons = batch_of(faces, step, batch)
        error: Tensor = arcface(recogniser(pictures), persons, MARGIN * min(1.0, 2 * step / steps))
        return error

    modules = nn.ModuleDict({"recogniser": recogniser, "arcface": arcface})
    optimizers = [torch.optim.AdamW(modules.parameters(), rate, weight_decay=5e-3)]
    trainer = Trainer(work, "recogniser", modules, loss, optimizers=optimizers, steps=steps, clip=float("inf"))
    trainer.run()
    with trainer.averaged():
        write_float16(recogniser.state_dict(), work / "recogniser.safetensors")


if __name__ == "__main__":
    typer.run(main)
