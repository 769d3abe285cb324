"""Whether an answer is what was asked for."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from instantid_client import GenerationResult

TOLERANCE = 2
"""Levels of 255 by which a picture may differ from the one that the request has alone: sums in another order."""


class WrongAnswer(Exception):
    """The server answered, and the answer is not the one to this request."""


def check_answer(
    result: GenerationResult, request_id: str, options: Mapping[str, Any], expected: GenerationResult | None = None
) -> None:
    """Check id, number of pictures, seeds, format and size, and that every picture decodes.

    `expected` is the same request's answer when it was alone; the pictures must then be equal to within TOLERANCE.
    Raises WrongAnswer with the first fault.
    """
    count, seed = options.get("num_images_per_prompt", 1), options["seed"]
    if result.request_id != request_id:
        raise WrongAnswer(f"request_id: {result.request_id!r}; must be {request_id!r}")
    if len(result.images) != count or result.seeds != tuple(range(seed, seed + count)):
        raise WrongAnswer(f"seeds: {result.seeds} for {len(result.images)} pictures; must be {count} from {seed} on")
    for i, image in enumerate(result.images):
        pixels = decode(image, options)
        if expected is not None:
            _compare(pixels, decode(expected.images[i], options))


def decode(image: bytes, options: Mapping[str, Any]) -> np.ndarray:
    """The picture's pixels, HWC uint8. Raises WrongAnswer if it does not decode or has another format or size."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            pixels, found = np.asarray(opened.convert("RGB")), (opened.format or "").lower()
    except (OSError, SyntaxError) as error:
        raise WrongAnswer(f"image: {len(image)} bytes that do not decode ({error})") from None
    height, width = (options.get(name, size) for name, size in zip(("height", "width"), pixels.shape, strict=False))
    if pixels.shape != (height, width, 3) or found != options.get("output_format", "png"):
        raise WrongAnswer(f"image: {found} of {pixels.shape[1]}x{pixels.shape[0]}; must be {width}x{height}")
    return pixels


def _compare(pixels: np.ndarray, expected: np.ndarray) -> None:
    if pixels.shape != expected.shape:
        raise WrongAnswer(f"image: {pixels.shape}; alone it is {expected.shape}")
    difference = int(np.abs(pixels.astype(int) - expected.astype(int)).max())
    if difference > TOLERANCE:
        raise WrongAnswer(f"image: differs by {difference} levels from the picture that the request has alone")
