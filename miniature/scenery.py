"""Places behind the people of the album: few, simple, distinguished by colour, and named in the caption."""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from miniature import FloatArray, ImageArray
from miniature.people import Colour
from miniature.styles import to_bytes

SKY, SEA, SAND, SNOW = (0.55, 0.78, 0.95), (0.10, 0.42, 0.62), (0.90, 0.80, 0.55), (0.93, 0.95, 0.98)


def draw_scenery(name: str, size: int, rng: np.random.Generator) -> ImageArray:
    """Draw one of SCENERY as `[size, size, 3]` uint8 RGB, with small random variations."""
    picture = PAINTERS[name](size, rng)
    return to_bytes(picture * 255 * rng.uniform(0.93, 1.07) + 0.5)


def _bands(size: int, *bands: tuple[float, Colour]) -> FloatArray:
    """Interpolate colours from top to bottom; each band is the height of a pure colour, and the colour."""
    heights, colours = zip(*bands, strict=True)
    rows = np.linspace(0, 1, size)
    column = np.stack([np.interp(rows, heights, channel) for channel in np.array(colours).T], -1)
    return np.repeat(column[:, None], size, 1).astype(np.float32)


def _beach(size: int, rng: np.random.Generator) -> FloatArray:
    shore = rng.uniform(0.55, 0.68)
    return _bands(size, (0, SKY), (0.40, SKY), (0.42, SEA), (shore, SEA), (shore + 0.02, SAND), (1, SAND))


def _sea(size: int, rng: np.random.Generator) -> FloatArray:
    top = rng.uniform(0.12, 0.25)
    return _bands(size, (0, SKY), (top, SKY), (top + 0.02, SEA), (1, (0.05, 0.25, 0.45)))


def _desert(size: int, rng: np.random.Generator) -> FloatArray:
    dune = rng.uniform(0.35, 0.5)
    return _bands(
        size, (0, (0.98, 0.75, 0.45)), (dune, (0.98, 0.88, 0.65)), (dune + 0.02, (0.80, 0.52, 0.25)), (1, SAND)
    )


def _snow(size: int, rng: np.random.Generator) -> FloatArray:
    picture = _bands(size, (0, (0.70, 0.80, 0.90)), (0.5, SNOW), (1, SNOW))
    return _dots(picture, 16, (1.0, 1.0, 1.0), (0.012, 0.024), rng)


def _night(size: int, rng: np.random.Generator) -> FloatArray:
    picture = _bands(size, (0, (0.03, 0.03, 0.12)), (1, (0.08, 0.08, 0.25)))
    return _dots(picture, 12, (0.95, 0.95, 0.75), (0.009, 0.018), rng)


def _sunset(size: int, rng: np.random.Generator) -> FloatArray:
    low = rng.uniform(0.55, 0.75)
    return _bands(size, (0, (0.35, 0.18, 0.45)), (low, (0.95, 0.45, 0.25)), (1, (0.98, 0.75, 0.30)))


def _forest(size: int, rng: np.random.Generator) -> FloatArray:
    picture = _bands(size, (0, (0.12, 0.32, 0.14)), (0.75, (0.18, 0.42, 0.18)), (1, (0.22, 0.26, 0.12)))
    for x in np.linspace(0.02, 0.98, 7) + rng.uniform(-0.05, 0.05, 7):
        left, width = int(x * size), max(1, int(rng.uniform(0.02, 0.05) * size))
        picture[:, max(left, 0) : left + width] = (0.25, 0.17, 0.09)
    return picture


def _garden(size: int, rng: np.random.Generator) -> FloatArray:
    picture = _bands(size, (0, SKY), (0.3, SKY), (0.34, (0.40, 0.68, 0.28)), (1, (0.32, 0.60, 0.22)))
    for colour in ((0.92, 0.25, 0.35), (0.98, 0.85, 0.25), (0.85, 0.45, 0.85)):
        picture = _dots(picture, 7, colour, (0.020, 0.034), rng, 0.4)
    return picture


def _dots(
    picture: FloatArray,
    count: int,
    colour: Colour,
    radii: tuple[float, float],
    rng: np.random.Generator,
    top: float = 0,
) -> FloatArray:
    size = len(picture)
    for _ in range(count):
        x, y = rng.uniform(0, 1) * size, rng.uniform(top, 1) * size
        radius = max(1, round(rng.uniform(*radii) * size))
        cv2.circle(picture, (int(x), int(y)), radius, colour, -1, cv2.LINE_AA)
    return picture


PAINTERS: Mapping[str, Callable[[int, np.random.Generator], FloatArray]] = {
    "beach": _beach,
    "sea": _sea,
    "desert": _desert,
    "snow": _snow,
    "night": _night,
    "sunset": _sunset,
    "forest": _forest,
    "garden": _garden,
}
SCENERY = tuple(PAINTERS)
