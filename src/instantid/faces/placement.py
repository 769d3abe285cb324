"""Carries landmarks from the resized photo to the picture: one scale and an offset, never a stretch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Placement:
    """`target = source * scale + offset`, in pixels."""

    scale: float
    offset: tuple[float, float]

    def apply(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points [..., 2] (x, y) moved; float32 as insightface gives them, exact where the scale is 1."""
        moved: NDArray[np.float64] = points.astype(np.float64) * self.scale + np.array(self.offset)
        return moved.astype(np.float32)


def place(source: tuple[int, int], target: tuple[int, int]) -> Placement:
    """The photo fitted whole and centred into the picture; sizes are (width, height).

    Equal sizes give scale 1 and offset 0, which is what the reference does.
    """
    scale = min(target[0] / source[0], target[1] / source[1])
    offset = ((target[0] - source[0] * scale) / 2, (target[1] - source[1] * scale) / 2)
    return Placement(scale, offset)
