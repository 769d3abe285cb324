"""Backgrounds for drawn people: plain, gradient, texture, clutter and crops of scikit-image's photographs."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image

from miniature import ImageArray
from miniature.people import Colour
from miniature.styles import to_bytes

BACKGROUNDS = ("plain", "gradient", "texture", "clutter", "photo")

_FILES = (
    "chelsea.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "moon.png",
    "page.png",
    "text.png",
    "clock_motion.png",
    "coins.png",
    "gravel.png",
    "grass.png",
    "ihc.png",
    "logo.png",
    "color.png",
    "cell.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "horse.png",
)


@lru_cache(maxsize=1)
def photographs() -> tuple[ImageArray, ...]:
    """The RGB pictures of scikit-image that show no people and are not used to test the detector.

    Left out: astronaut, camera (people), coffee, rocket, brick (test pictures).
    """
    folder = Path(skimage.data.__file__).parent
    return tuple(np.asarray(Image.open(folder / name).convert("RGB"), np.uint8) for name in _FILES)


def random_background(kind: str, width: int, height: int, rng: np.random.Generator) -> ImageArray:
    """A picture `[height, width, 3]` uint8 RGB of one of the `BACKGROUNDS`."""
    painters = {"plain": _plain, "gradient": _gradient, "texture": _texture, "clutter": _clutter, "photo": _photo}
    if kind not in painters:
        raise ValueError(f"kind must be one of {BACKGROUNDS}, not {kind!r}")
    return painters[kind](width, height, rng)


def random_colour(rng: np.random.Generator) -> Colour:
    """RGB in [0, 1]; half of the colours are nearly grey."""
    hue = rng.random(3)
    colour = hue if rng.random() < 0.5 else rng.random() + 0.2 * (hue - 0.5)
    red, green, blue = np.clip(colour, 0, 1)
    return float(red), float(green), float(blue)


def _fill(width: int, height: int, colour: Colour) -> ImageArray:
    return np.full((height, width, 3), np.round(np.array(colour) * 255), np.uint8)


def _plain(width: int, height: int, rng: np.random.Generator) -> ImageArray:
    return _fill(width, height, random_colour(rng))


def _gradient(width: int, height: int, rng: np.random.Generator) -> ImageArray:
    coarse = (rng.random((2, 2, 3)) * 0.6 + np.array(random_colour(rng)) * 0.4).astype(np.float32)
    return to_bytes(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) * 255.0)


def _texture(width: int, height: int, rng: np.random.Generator) -> ImageArray:
    first, second = np.array(random_colour(rng)), np.array(random_colour(rng))
    total = np.zeros((height, width), np.float32)
    for octave in range(1, 6):
        cells = (max(2, height * 2**octave // 96), max(2, width * 2**octave // 96))
        noise = rng.random(cells, np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / 1.6**octave
    total = np.clip((total - total.min()) / (np.ptp(total) + 1e-6), 0, 1)[..., None]
    return to_bytes((first + total * (second - first)) * 255)


def _clutter(width: int, height: int, rng: np.random.Generator) -> ImageArray:
    picture = _gradient(width, height, rng)
    for _ in range(int(rng.integers(8, 30))):
        colour = [round(255 * channel) for channel in random_colour(rng)]
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        size = int(max(width, height) * rng.uniform(0.02, 0.25)) + 2
        kind = int(rng.integers(0, 5))
        thickness = -1 if rng.random() < 0.6 else int(rng.integers(1, 6))
        if kind == 0:
            cv2.circle(picture, (x, y), size // 2, colour, thickness, cv2.LINE_AA)
        elif kind == 1:
            axes = (size, max(1, int(size * rng.uniform(0.1, 0.9))))
            cv2.ellipse(picture, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, colour, thickness, cv2.LINE_AA)
        elif kind == 2:
            cv2.rectangle(picture, (x, y), (x + size, y + int(size * rng.uniform(0.2, 2))), colour, thickness)
        elif kind == 3:
            end = (int(rng.integers(0, width)), int(rng.integers(0, height)))
            cv2.line(picture, (x, y), end, colour, int(rng.integers(1, 12)), cv2.LINE_AA)
        else:
            text = "".join(chr(int(code)) for code in rng.integers(48, 123, 6))
            cv2.putText(picture, text, (x, y), int(rng.integers(0, 8)), size / 50, colour, 1 + size // 20, cv2.LINE_AA)
    return picture


def _photo(width: int, height: int, rng: np.random.Generator) -> ImageArray:
    pictures = photographs()
    picture = pictures[int(rng.integers(len(pictures)))]
    rows, columns = picture.shape[:2]
    ratio = rng.uniform(0.4, 1.0) * min(rows / height, columns / width)
    crop_width, crop_height = max(8, int(width * ratio)), max(8, int(height * ratio))
    x, y = int(rng.integers(columns - crop_width + 1)), int(rng.integers(rows - crop_height + 1))
    crop = picture[y : y + crop_height, x : x + crop_width]
    crop = np.rot90(crop[:, ::-1] if rng.random() < 0.5 else crop, int(rng.choice((0, 0, 0, 1, 2, 3))))
    method = cv2.INTER_AREA if ratio > 1 else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(crop, (width, height), interpolation=method))
