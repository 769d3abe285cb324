"""Train the miniature face detector on drawn faces, LFW's small faces, and pictures without faces.

Nothing of scikit-image's astronaut, camera, coffee, rocket and brick, nor of insightface's t1.jpg, is trained
on. They were looked at to choose the data's mix and the checkpoint: the detector's figures on them are an
acceptance of a toy, not an estimate of how it does elsewhere.

Run `python -m build_tools.miniature.train_detector WORKDIR`; started again it goes on from its checkpoint.
A pool of 8000 pictures takes 3 GB of memory. The committed weights come from four rounds, each begun with
the weights of the one before (`--start`): 1900 steps without `distractors.py`, 1500 with it, 600 with
`--mine 1600` and 600 with `--mine 2400`; so one run from nothing comes close to them but does not repeat them.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from build_tools.miniature.album import draw_page
from build_tools.miniature.crowds import MOST_FACES, SIDE, draw_crowd, draw_faceless
from build_tools.miniature.detector import INPUT_MEAN, INPUT_STD, Detector
from build_tools.miniature.detector_loss import Anchors, detection_loss
from build_tools.miniature.people import random_identity
from build_tools.miniature.training import note_loss

CROP = 256
HARD_SHARE = 0.3
NEAR, NEAR_CROP = (448, 704), 448
"""Portraits are enlarged to sides between these: so large are faces in a photo fitted to 640."""
LANDMARK_WEIGHT, NEAR_LANDMARK_WEIGHT = 4.0, 12.0
Pool = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]


def make_pool(folder: Path, size: int, workers: int) -> Pool:
    """`size` training pictures `[size, 320, 320, 3]` and their faces `[size, 8, 15]` (NaN: none), kept on disk."""
    pictures_path, faces_path = folder / f"pictures-{size}.npy", folder / f"faces-{size}.npy"
    if not faces_path.exists():
        pictures = np.lib.format.open_memmap(pictures_path, "w+", np.uint8, (size, SIDE, SIDE, 3))
        faces = np.full((size, MOST_FACES, 15), np.nan, np.float32)
        with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as executor:
            crowds = executor.map(draw_crowd, range(size), chunksize=16)
            for index, crowd in enumerate(tqdm(crowds, "drawing", size)):
                pictures[index] = crowd.picture
                faces[index, : len(crowd.faces)] = crowd.faces
        pictures.flush()
        np.save(faces_path, faces)
    return np.load(pictures_path), np.load(faces_path)


def hard_negatives(folder: Path, detector: Detector, drawn: int, workers: int) -> Pool:
    """Of `drawn` faceless pictures the quarter in which `detector` is surest of a face, as a pool."""
    path = folder / f"hard-{drawn}.npy"
    if not path.exists():
        pictures = np.empty((drawn, SIDE, SIDE, 3), np.uint8)
        best = np.empty(drawn, np.float32)
        with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as executor:
            faceless = executor.map(draw_faceless, range(drawn), chunksize=16)
            for index, picture in enumerate(tqdm(faceless, "hard negatives", drawn)):
                pictures[index] = picture
                best[index] = _surest(detector, picture)
        np.save(path, pictures[np.argsort(-best)[: drawn // 4]])
    chosen = np.load(path)
    return chosen, np.full((len(chosen), MOST_FACES, 15), np.nan, np.float32)


def make_portraits(folder: Path, size: int, workers: int) -> Pool:
    """As `make_pool`: one face each, near, as the album shows them."""
    path = folder / f"portraits-{size}.npz"
    if not path.exists():
        with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as executor:
            drawn = list(tqdm(executor.map(_draw_portrait, range(size), chunksize=16), "portraits", size))
        pictures, rows = (np.stack(part) for part in zip(*drawn, strict=True))
        np.savez(path, pictures=pictures, faces=rows)
    with np.load(path) as kept:
        return kept["pictures"], kept["faces"]


def _draw_portrait(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    page = draw_page(random_identity(200_000 + seed), seed, SIDE)
    return page.picture, np.concatenate([page.box, page.landmarks.reshape(-1), [1.0]]).astype(np.float32)[None]


@torch.inference_mode()
def _surest(detector: Detector, picture: npt.NDArray[np.uint8]) -> float:
    image = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - INPUT_MEAN) / INPUT_STD
    return float(torch.cat(detector.eval()(image)[:3], 1).max())


def batch_of(pools: Sequence[Pool], step: int, size: int) -> tuple[Tensor, list[Tensor]]:
    """Batch number `step`: images `[size, 3, 256, 256]` as the detector takes them, and their faces.

    With a second pool three in ten pictures come from it.
    """
    rng = np.random.default_rng([step, 0xBA])
    images, faces = [], []
    for _ in range(size):
        pool = pools[-1] if rng.random() < HARD_SHARE else pools[0]
        index = int(rng.integers(len(pool[0])))
        picture, rows = _vary(pool[0][index], pool[1][index], rng)
        images.append(picture)
        faces.append(torch.from_numpy(rows))
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (stacked - INPUT_MEAN) / INPUT_STD, faces


def portraits_of(pool: Pool, step: int, size: int) -> tuple[Tensor, list[Tensor]]:
    """As `batch_of`: images `[size, 3, 448, 448]` of portraits, some of them blurred as pictures of 128 pixels are."""
    rng = np.random.default_rng([step, 0xBB])
    images, faces = [], []
    for _ in range(size):
        index = int(rng.integers(len(pool[0])))
        picture, side = pool[0][index], int(rng.integers(*NEAR))
        if rng.random() < 0.5:
            picture = cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA)
        rows = pool[1][index].copy()
        rows[:, :14] *= side / SIDE
        enlarged = np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR))
        picture, rows = _vary(enlarged, rows, rng, NEAR_CROP)
        images.append(picture)
        faces.append(torch.from_numpy(rows))
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (stacked - INPUT_MEAN) / INPUT_STD, faces


def _vary(
    picture: npt.NDArray[np.uint8], rows: npt.NDArray[np.float32], rng: np.random.Generator, crop: int = CROP
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    rows = rows[~np.isnan(rows[:, 0])].copy()
    x, y = rng.integers(0, len(picture) - crop + 1, 2)
    picture = picture[y : y + crop, x : x + crop]
    rows[:, :14] -= np.tile((x, y), 7)
    if rng.random() < 0.5:
        picture, rows = picture[:, ::-1], mirrored(rows, crop)
    if rng.random() < 0.5:
        shift = rng.normal(0, 18) + rng.normal(0, 6, 3)
        picture = np.clip(picture * rng.uniform(0.75, 1.25) + shift, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        picture = picture[..., rng.permutation(3)]
    middle = (rows[:, :2] + rows[:, 2:4]) / 2
    return np.ascontiguousarray(picture), rows[((middle > -4) & (middle < crop + 4)).all(1)]


def mirrored(rows: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """Faces `[n, 15]` of the mirrored picture; left and right landmarks change places."""
    result = rows.copy()
    result[:, [0, 2]] = width - 1 - rows[:, [2, 0]]
    points = rows[:, 4:14].reshape(-1, 5, 2)[:, [1, 0, 2, 4, 3]]
    points[..., 0] = width - 1 - points[..., 0]
    result[:, 4:14] = points.reshape(-1, 10)
    return result


class Trainer:
    """AdamW with a one-cycle learning rate; an average of the weights over the last steps is what is kept."""

    def __init__(self, steps: int, peak: float = 3e-3) -> None:
        torch.manual_seed(0)
        self.detector = Detector()
        self.detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = torch.optim.swa_utils.AveragedModel(
            self.detector, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
        )
        self.optimizer = torch.optim.AdamW(self.detector.parameters(), peak, weight_decay=1e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, peak, steps, pct_start=0.05)
        self.step = 0

    def learn(self, *batches: tuple[Tensor, list[Tensor]]) -> dict[str, float]:
        """One step on a batch of crowds, and one of portraits where given, which leaves the norms as they are."""
        self.detector.train(len(batches) == 1)
        total, told = torch.zeros(()), {}
        for (images, faces), weight in zip(batches, (LANDMARK_WEIGHT, NEAR_LANDMARK_WEIGHT), strict=False):
            outputs = self.detector(images.contiguous(memory_format=torch.channels_last))
            losses = detection_loss(outputs, faces, Anchors.of(*images.shape[2:]))
            total = total + losses["score"] + 2 * losses["box"] + weight * losses["landmark"]
            told = {name: told.get(name, 0.0) + float(loss.detach()) for name, loss in losses.items()}
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.detector.parameters(), 5.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.detector)
        self.step += 1
        return told

    def begin_with(self, path: Path) -> None:
        weights = {name: value.float() for name, value in load_file(path).items()}
        self.detector.load_state_dict(weights, strict=False)
        self.average.module.load_state_dict(weights, strict=False)

    def save(self, path: Path) -> None:
        parts = ("detector", "average", "optimizer", "schedule")
        state = {name: getattr(self, name).state_dict() for name in parts} | {"step": self.step}
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step = state.pop("step")
        for name, values in state.items():
            getattr(self, name).load_state_dict(values)


def save_weights(detector: torch.nn.Module, path: Path) -> None:
    """Float16 safetensors of all weights and BatchNorm statistics."""
    weights = {name: value.half() for name, value in detector.state_dict().items() if value.is_floating_point()}
    save_file({name: value.contiguous() for name, value in weights.items()}, path)


@dataclass(frozen=True)
class Plan:
    """How to train: the defaults begin from nothing."""

    steps: int = 4000
    batch: int = 16
    peak: float = 3e-3
    pool_size: int = 8000
    start: Path | None = None
    mine: int = 0
    portraits: int = 0
    portrait_batch: int = 6
    workers: int = 2


def train(folder: Path, plan: Plan) -> Path:
    """Train in `folder`, from the weights in `start` if given, and return the path of the new weights.

    With `mine` that many faceless pictures are drawn and those that mislead `start` most are trained on too; with
    `portraits` that many near faces, for exact landmarks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pools = [make_pool(folder, plan.pool_size, plan.workers)]
    trainer, checkpoint = Trainer(plan.steps, plan.peak), folder / "detector.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif plan.start is not None:
        trainer.begin_with(plan.start)
    if plan.mine:
        pools.append(hard_negatives(folder, trainer.detector, plan.mine, plan.workers))
    near = make_portraits(folder, plan.portraits, plan.workers) if plan.portraits else None
    totals: list[float] = []
    with tqdm(total=plan.steps, initial=trainer.step, desc="training", mininterval=5) as progress:
        while trainer.step < plan.steps:
            batches = [batch_of(pools, trainer.step, plan.batch)]
            batches += [portraits_of(near, trainer.step, plan.portrait_batch)] if near else []
            losses = trainer.learn(*batches)
            totals.append(sum(losses.values()))
            progress.update()
            progress.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
            if trainer.step % 200 == 0 or trainer.step == plan.steps:
                trainer.save(checkpoint)
                note_loss(folder / "detector.json", trainer.step, fmean(totals))
                totals.clear()
                save_weights(trainer.average.module, folder / "detector.safetensors")
    return folder / "detector.safetensors"


def main(  # noqa: PLR0913 - one parameter for each option
    folder: Path,
    steps: int = Plan.steps,
    batch: int = Plan.batch,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = Plan.peak,
    pool_size: int = Plan.pool_size,
    start: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    mine: Annotated[int, typer.Option(help="Faceless pictures to seek hard negatives in.")] = Plan.mine,
    portraits: Annotated[int, typer.Option(help="Near faces to train on as well.")] = Plan.portraits,
    portrait_batch: int = Plan.portrait_batch,
    workers: int = Plan.workers,
    threads: int = 2,
) -> None:
    torch.set_num_threads(threads)
    print(train(folder, Plan(steps, batch, peak, pool_size, start, mine, portraits, portrait_batch, workers)))


if __name__ == "__main__":
    typer.run(main)
