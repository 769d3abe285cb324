"""Batches for the detector's training: crowds, faceless pictures that mislead it, near faces."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from miniature.album import draw_page
from miniature.crowds import MOST_FACES, SIDE, draw_crowd, draw_faceless
from miniature.detector import INPUT_MEAN, INPUT_STD, Detector
from miniature.people import random_identity

CROP = 256
HARD_SHARE = 0.3
NEAR, NEAR_CROP = (448, 704), 448
"""Portraits are enlarged to sides between these: so large are faces in a photo fitted to 640."""
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
            if rng.random() < 0.6:
                picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.5, 2.5)))
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
