"""Draws many pictures in parallel, caches arrays on disk, encodes pictures as PNG."""

import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from miniature import ImageArray

Drawn = TypeVar("Drawn")


def draw_all(draw: Callable[[int], Drawn], seeds: range, title: str) -> Iterator[Drawn]:
    """Yield what `draw` returns for each seed, in order, with a progress bar. Uses one process for each core."""
    with ProcessPoolExecutor(None, get_context("spawn"), cv2.setNumThreads, (1,)) as executor:
        yield from tqdm(executor.map(draw, seeds, chunksize=8), title, len(seeds), mininterval=5)


def cached_arrays(path: Path, make: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of the file `path`; if it does not exist, write what `make` returns to it first."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, **make())
        path.with_suffix(".part").replace(path)
    with np.load(path) as kept:
        return dict(kept)


def as_png(picture: ImageArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
