"""A face plane to paint on: colour and relief in head units, with soft-edged shapes."""

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from miniature.people import Colour

HALF_WIDTH = 1.25
HALF_HEIGHT = 1.65
_SHIFT = 5


class Plane:
    """A float canvas over X in [-1.25, 1.25], Y in [-1.65, 1.65] head units, drawn on with soft masks."""

    def __init__(self, resolution: int, colour: Colour) -> None:
        self.resolution = resolution
        size = (round(2 * HALF_HEIGHT * resolution), round(2 * HALF_WIDTH * resolution))
        self.albedo = np.empty((*size, 3), np.float32)
        self.albedo[:] = colour
        self.relief = np.zeros(size, np.float32)
        self.x = (np.arange(size[1], dtype=np.float32) + 0.5) / resolution - HALF_WIDTH
        self.y = (np.arange(size[0], dtype=np.float32) + 0.5) / resolution - HALF_HEIGHT

    def tint(self, points: npt.ArrayLike, colour: Colour, opacity: float, softness: float = 0.0) -> None:
        """Paint a colour onto a polygon `[n, 2]` in head units, its edge blurred by `softness` head units."""
        polygon = np.asarray(points, np.float64)
        margin = 2.5 * softness + 2.5 / self.resolution
        low = polygon.min(0) - margin + (HALF_WIDTH, HALF_HEIGHT)
        high = polygon.max(0) + margin + (HALF_WIDTH, HALF_HEIGHT)
        x0, y0 = np.maximum(np.floor(low * self.resolution), 0).astype(int)
        x1, y1 = np.ceil(high * self.resolution).astype(int)
        area = self.albedo[y0:y1, x0:x1]
        if area.size == 0:
            return
        mask = np.zeros(area.shape[:2], np.uint8)
        corners = (polygon + np.array((HALF_WIDTH, HALF_HEIGHT))) * self.resolution - np.array((x0 + 0.5, y0 + 0.5))
        cv2.fillPoly(mask, [np.round(corners * 2**_SHIFT).astype(np.int32)], (255,), cv2.LINE_AA, _SHIFT)
        if softness * self.resolution > 0.4:
            mask = cv2.GaussianBlur(mask, (0, 0), softness * self.resolution).astype(np.uint8)
        weight = mask[..., None] * np.float32(opacity / 255)
        area += weight * (np.array(colour, np.float32) - area)

    def bump(self, centre: tuple[float, float], radii: tuple[float, float], height: float) -> None:
        """Add a Gaussian hill of this height and these standard deviations to the relief."""
        across = np.exp(-0.5 * ((self.x - centre[0]) / radii[0]) ** 2)
        down = np.exp(-0.5 * ((self.y - centre[1]) / radii[1]) ** 2)
        self.relief += np.float32(height) * np.outer(down, across)


def ellipse(centre: tuple[float, float], radii: tuple[float, float], count: int = 24) -> npt.NDArray[np.float64]:
    """Corners `[count, 2]` of an upright ellipse."""
    return _circle(count) * radii + centre


@lru_cache
def _circle(count: int) -> npt.NDArray[np.float64]:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], 1)
