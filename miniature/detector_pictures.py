"""Batches for the detector's training: crowds, hard negatives, and portraits."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from miniature.album import draw_page
from miniature.crowds import MOST_FACES, SIDE, draw_crowd, draw_faceless
from miniature.detector import INPUT_MEAN, INPUT_STD, Detector
from miniature.drawing import cached_arrays, draw_all
from miniature.people import random_identity

CROP = 256
HARD_SHARE = 0.3
NEAR, NEAR_CROP = (448, 704), 448
"""Portraits are enlarged to sides in this range, to the size that faces have in a portrait photo fitted to 640."""
Batch = tuple[Tensor, list[Tensor]]
"""Images `[n, 3, side, side]` in the detector's input range, and the faces `[f, 15]` of each."""


class Pool(NamedTuple):
    """Pictures `[n, 320, 320, 3]` uint8 RGB, and the faces `[n, f, 15]` of each; NaN fills what a picture lacks."""

    pictures: npt.NDArray[np.uint8]
    faces: npt.NDArray[np.float32]


def make_crowds(folder: Path, size: int) -> Pool:
    """Draw `size` crowds, or read them from `folder` if they are there."""

    def draw() -> dict[str, npt.NDArray]:
        faces = np.full((size, MOST_FACES, 15), np.nan, np.float32)
        crowds = list(draw_all(draw_crowd, range(size), "crowds"))
        for rows, crowd in zip(faces, crowds, strict=True):
            rows[: len(crowd.faces)] = crowd.faces
        return {"pictures": np.stack([crowd.picture for crowd in crowds]), "faces": faces}

    return Pool(**cached_arrays(folder / f"crowds-{size}.npz", draw))


def hard_negatives(folder: Path, detector: Detector, drawn: int) -> Pool:
    """The quarter of `drawn` faceless pictures with the highest scores of `detector`."""

    def draw() -> dict[str, npt.NDArray]:
        pictures = np.stack(list(draw_all(draw_faceless, range(drawn), "faceless pictures")))
        best = [_highest_score(detector, picture) for picture in tqdm(pictures, "hard negatives")]
        chosen = pictures[np.argsort(best)[::-1][: drawn // 4]]
        return {"pictures": chosen, "faces": np.full((len(chosen), MOST_FACES, 15), np.nan, np.float32)}

    return Pool(**cached_arrays(folder / f"hard-{drawn}.npz", draw))


def make_portraits(folder: Path, size: int) -> Pool:
    """Draw `size` pictures with one large face each, like the album's pages."""

    def draw() -> dict[str, npt.NDArray]:
        pictures, faces = zip(*draw_all(_draw_portrait, range(size), "portraits"), strict=True)
        return {"pictures": np.stack(pictures), "faces": np.stack(faces)}

    return Pool(**cached_arrays(folder / f"portraits-{size}.npz", draw))


def _draw_portrait(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    page = draw_page(random_identity(200_000 + seed), seed, SIDE)
    return page.picture, np.concatenate([page.box, page.landmarks.reshape(-1), [1.0]]).astype(np.float32)[None]


@torch.inference_mode()
def _highest_score(detector: Detector, picture: npt.NDArray[np.uint8]) -> float:
    image = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - INPUT_MEAN) / INPUT_STD
    return float(torch.cat(detector.eval()(image)[:3], 1).max())


def crowds_of(pools: Sequence[Pool], step: int, size: int) -> Batch:
    """Batch number `step`, `[size, 3, 256, 256]`: seven pictures in ten from the first pool, three from the last."""
    rng = np.random.default_rng([step, 0xBA])

    def draw() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        pool = pools[-1] if rng.random() < HARD_SHARE else pools[0]
        index = int(rng.integers(len(pool.pictures)))
        return _vary(pool.pictures[index], pool.faces[index], rng)

    return _batch([draw() for _ in range(size)])


def portraits_of(pool: Pool, step: int, size: int) -> Batch:
    """Batch number `step`, `[size, 3, 448, 448]`. Half of the portraits are enlarged from 128 pixels."""
    rng = np.random.default_rng([step, 0xBB])

    def draw() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        index = int(rng.integers(len(pool.pictures)))
        picture, side = pool.pictures[index], int(rng.integers(*NEAR))
        if rng.random() < 0.5:
            picture = cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA)
            if rng.random() < 0.6:
                picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.5, 2.5)))
        rows = pool.faces[index].copy()
        rows[:, :14] *= side / SIDE
        enlarged = np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR))
        return _vary(enlarged, rows, rng, NEAR_CROP)

    return _batch([draw() for _ in range(size)])


def _batch(drawn: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]) -> Batch:
    images = torch.from_numpy(np.stack([picture for picture, _ in drawn])).permute(0, 3, 1, 2).float()
    images = ((images - INPUT_MEAN) / INPUT_STD).contiguous(memory_format=torch.channels_last)
    return images, [torch.from_numpy(rows) for _, rows in drawn]


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
    """Faces `[n, 15]` of the mirrored picture, with left and right landmarks exchanged."""
    result = rows.copy()
    result[:, [0, 2]] = width - 1 - rows[:, [2, 0]]
    points = rows[:, 4:14].reshape(-1, 5, 2)[:, [1, 0, 2, 4, 3]]
    points[..., 0] = width - 1 - points[..., 0]
    result[:, 4:14] = points.reshape(-1, 10)
    return result
