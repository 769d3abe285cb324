"""Train the miniature recogniser with ArcFace's loss (Deng et al., 2019) on drawn people.

Run `python -m miniature.train_recogniser WORKDIR`; started again it goes on from its checkpoint.
Persons from number 100000 on are kept for measuring.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from miniature.people_pictures import SIDE, aligned_picture
from miniature.recogniser import EMBEDDING, INPUT_MEAN, INPUT_STD, Recogniser
from miniature.train_detector import save_weights
from miniature.training import note_loss

UNSEEN = 100_000
SOFT = 0.5
"""Share of the faces that are softened."""
STRETCH = 0.04
"""Standard deviation of each number of the stretching matrix."""


class ArcFace(nn.Module):
    """Softmax over persons of `scale * cos(angle + margin)` for the right one."""

    def __init__(self, persons: int, scale: float = 24.0, margin: float = 0.35) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(persons, EMBEDDING))
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, persons: Tensor, margin: float) -> Tensor:
        cosine = functional.linear(functional.normalize(embeddings), functional.normalize(self.centres))
        angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        chosen = functional.one_hot(persons, len(self.centres)).bool()
        logits = torch.where(chosen, (angle + margin).clamp(max=torch.pi).cos(), cosine)
        return functional.cross_entropy(self.scale * logits, persons)


def _shots(person: int, shots: int) -> npt.NDArray[np.uint8]:
    return np.stack([aligned_picture(person, shot) for shot in range(shots)])


def make_album(folder: Path, persons: int, shots: int, workers: int) -> npt.NDArray[np.uint8]:
    """Pictures `[persons, shots, 112, 112, 3]` uint8 RGB, kept on disk."""
    path = folder / f"album-{persons}x{shots}.npy"
    if not path.exists():
        album = np.empty((persons, shots, SIDE, SIDE, 3), np.uint8)
        with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as executor:
            drawn = executor.map(partial(_shots, shots=shots), range(persons), chunksize=4)
            for person, pictures in enumerate(tqdm(drawn, "drawing", persons)):
                album[person] = pictures
        np.save(path, album)
    return np.asarray(np.load(path))


def batch_of(album: npt.NDArray[np.uint8], step: int, size: int) -> tuple[Tensor, Tensor]:
    """Batch number `step`: faces `[size, 3, 112, 112]` as the recogniser takes them, and persons `[size]`."""
    rng = np.random.default_rng([step, 0xAB])
    persons = rng.integers(len(album), size=size)
    pictures = album[persons, rng.integers(album.shape[1], size=size)].astype(np.float32)
    flips = rng.random(size) < 0.5
    pictures[flips] = pictures[flips, :, ::-1]
    pictures = np.stack([_soften(picture, rng) if rng.random() < SOFT else picture for picture in pictures])
    pictures = np.stack([_stretch(picture, rng) for picture in pictures])
    pictures = pictures * rng.uniform(0.9, 1.1, (size, 1, 1, 1)) + rng.normal(0, 6, (size, 1, 1, 1))
    faces = torch.from_numpy(np.clip(pictures, 0, 255)).permute(0, 3, 1, 2).float()
    return (faces - INPUT_MEAN) / INPUT_STD, torch.from_numpy(persons)


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


class Trainer:
    """AdamW with a one-cycle learning rate; the margin grows from 0 over the first half of the steps."""

    def __init__(self, steps: int, persons: int, peak: float = 3e-3) -> None:
        torch.manual_seed(0)
        self.steps, self.step = steps, 0
        self.recogniser, self.loss = Recogniser(), ArcFace(persons)
        self.recogniser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters = [*self.recogniser.parameters(), *self.loss.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, peak, weight_decay=5e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, peak, steps, pct_start=0.1)

    def learn(self, faces: Tensor, persons: Tensor) -> float:
        embeddings = self.recogniser(faces.contiguous(memory_format=torch.channels_last))
        loss: Tensor = self.loss(embeddings, persons, self.loss.margin * min(1.0, 2 * self.step / self.steps))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return float(loss.detach())

    def begin_with(self, path: Path) -> None:
        weights = {name: value.float() for name, value in load_file(path).items()}
        self.recogniser.load_state_dict(weights, strict=False)

    def save(self, path: Path) -> None:
        parts = ("recogniser", "loss", "optimizer", "schedule")
        state = {name: getattr(self, name).state_dict() for name in parts} | {"step": self.step}
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step = state.pop("step")
        for name, values in state.items():
            getattr(self, name).load_state_dict(values)


def train(folder: Path, steps: int, persons: int, shots: int, batch: int, workers: int, start: Path | None) -> Path:
    """Train in `folder`, from the weights in `start` if given, and return the path of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    album = make_album(folder, persons, shots, workers)
    trainer, checkpoint = Trainer(steps, persons), folder / "recogniser.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif start is not None:
        trainer.begin_with(start)
    losses: list[float] = []
    with tqdm(total=steps, initial=trainer.step, desc="training", mininterval=5) as progress:
        while trainer.step < steps:
            losses.append(trainer.learn(*batch_of(album, trainer.step, batch)))
            progress.update()
            progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            if trainer.step % 250 == 0 or trainer.step == steps:
                trainer.save(checkpoint)
                note_loss(folder / "recogniser.json", trainer.step, fmean(losses))
                losses.clear()
                save_weights(trainer.recogniser, folder / "recogniser.safetensors")
    return folder / "recogniser.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--persons", type=int, default=1600)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    print(train(**arguments))


if __name__ == "__main__":
    main()
