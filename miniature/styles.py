"""Picture styles, and the defects that cameras and files add."""

import cv2
import numpy as np
import numpy.typing as npt

from miniature import ImageArray

STYLES = ("photo", "black and white photo", "pencil drawing", "oil painting", "pop art")


def apply_style(picture: ImageArray, style: str) -> ImageArray:
    """Change a `[h, w, 3]` uint8 RGB picture to one of STYLES."""
    if style == "photo":
        return picture
    if style == "oil painting":
        smooth = cv2.medianBlur(cv2.bilateralFilter(picture, 5, 40, 4), 5)
        return to_bytes(smooth.astype(np.float32) * 1.08 - 4)
    if style == "pop art":
        levels = np.round(cv2.medianBlur(picture, 3) / 64.0) * 64
        grey = levels.mean(-1, keepdims=True)
        return to_bytes(grey + 1.7 * (levels - grey))
    grey = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)
    if style == "pencil drawing":
        halo = cv2.GaussianBlur(255 - grey, (0, 0), 2.5)
        grey = to_bytes(grey * (229.5 / (256.0 - halo) + 0.1))
    elif style != "black and white photo":
        raise ValueError(f"style must be one of {STYLES}, not {style!r}")
    return np.repeat(grey[..., None], 3, -1)


def to_bytes(values: npt.NDArray[np.floating]) -> ImageArray:
    """Clip values to [0, 255] and convert them to uint8."""
    return np.clip(values, 0, 255).astype(np.uint8)


def degrade(picture: ImageArray, rng: np.random.Generator, strength: float = 1.0) -> ImageArray:
    """Imitate a random camera on a `[h, w, 3]` uint8 picture: contrast, white balance, saturation, blur, noise, JPEG.

    `strength` scales the changes of contrast and white balance.
    """
    values: npt.NDArray[np.float32] = picture.astype(np.float32)
    if rng.random() < 0.8:
        gain = np.float32(rng.uniform(0.6, 1.35)) * rng.uniform(0.88, 1.12, 3).astype(np.float32)
        gain = gain ** np.float32(strength)
        values = (values - 127) * gain + 127 + np.float32(strength * rng.normal(0, 22))
    if rng.random() < 0.35:
        grey = values.mean(-1, keepdims=True)
        values = grey + np.float32(rng.choice((0.0, 0.5, 1.5))) * (values - grey)
    if rng.random() < 0.4:
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), float(rng.uniform(0.3, 1.6))), np.float32)
    if rng.random() < 0.4:
        values = values + rng.standard_normal(values.shape, np.float32) * np.float32(rng.uniform(1, 12))
    result = to_bytes(values)
    if rng.random() < 0.4:
        quality = int(rng.integers(30, 95))
        coded = cv2.imencode(".jpg", result, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
        result = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return result
