"""Small photographed faces for training: the 100 grey 25x25 faces of `skimage.data.lfw_subset`.

Labeled Faces in the Wild (Huang et al., 2007) in the form that scikit-image ships. The faces come aligned, so
one set of landmarks, read from their mean picture, is good to about one pixel of 25.
"""

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import skimage.data

from miniature import FloatArray, ImageArray
from miniature.people import Colour

SIDE = 25
LANDMARKS = np.array([(6.1, 8.7), (15.1, 8.1), (10.7, 13.9), (7.2, 17.6), (15.6, 17.3)], np.float32)
BOX = np.array((1.9, 1.2, 20.3, 24.2), np.float32)


@lru_cache(maxsize=1)
def grey_faces() -> FloatArray:
    """Faces `[100, 25, 25]` in [0, 1]; the second hundred of the subset shows no faces."""
    return np.asarray(skimage.data.lfw_subset()[:100], np.float32)


def random_face(rng: np.random.Generator) -> FloatArray:
    """A face `[25, 25]` in [0, 1]; three in ten are blends of two."""
    faces = grey_faces()
    face = faces[int(rng.integers(len(faces)))]
    if rng.random() < 0.3:
        share = rng.uniform(0.3, 0.7)
        face = share * face + (1 - share) * faces[int(rng.integers(len(faces)))]
    return np.asarray(face, np.float32)


def paste_face(
    picture: ImageArray, eyes: npt.NDArray[np.float32], skin: Colour | None, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Paste a random face so that its eyes fall on `eyes` `[2, 2]` (x, y) of the `[h, w, 3]` uint8 RGB picture.

    With `skin` the face inside its oval is tinted and laid over what is there; without, the whole grey square is
    laid down, its edge softened. Changes the picture; returns the box `[4]` and landmarks `[5, 2]` in pixels.
    """
    face = random_face(rng)
    eye_line, target = LANDMARKS[1] - LANDMARKS[0], eyes[1] - eyes[0]
    ratio = complex(*target.tolist()) / complex(*eye_line.tolist())
    matrix = np.array([(ratio.real, -ratio.imag, 0), (ratio.imag, ratio.real, 0)], np.float32)
    matrix[:, 2] = eyes.mean(0) - matrix[:, :2] @ LANDMARKS[:2].mean(0)
    detail = 8 if abs(ratio) > 1.5 else 1
    large = cv2.resize(face, None, fx=detail, fy=detail, interpolation=cv2.INTER_CUBIC)
    if abs(ratio) < 0.7:
        large = cv2.GaussianBlur(large, (0, 0), 0.4 / abs(ratio))
    mask = _mask(large.shape[0], skin is not None)
    tinted = _tinted(np.asarray(large, np.float32), skin, rng)
    _blend(picture, tinted, mask, matrix / np.array((detail, detail, 1), np.float32))
    spots = LANDMARKS @ matrix[:, :2].T + matrix[:, 2]
    corners = np.array([BOX[[0, 1]], BOX[[2, 1]], BOX[[0, 3]], BOX[[2, 3]]]) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(0), corners.max(0)], dtype=np.float32), np.asarray(spots, np.float32)


def _tinted(face: FloatArray, skin: Colour | None, rng: np.random.Generator) -> FloatArray:
    if skin is None:
        return np.asarray(np.repeat(face[..., None], 3, -1) * 255, np.float32)
    face = np.maximum(face, 0)
    bright = np.percentile(face, 75) + 0.05
    tone = np.array(skin, np.float32) * np.float32(rng.uniform(0.8, 1.1))
    return np.asarray((face[..., None] / bright) ** (1 + 0.25 * (1 - tone)) * tone * 255, np.float32)


def _mask(side: int, oval: bool) -> FloatArray:
    grid = (np.arange(side, dtype=np.float32) + 0.5) * SIDE / side
    if oval:
        reach = np.hypot((grid[None] - 11) / 9.4, (grid[:, None] - 12.6) / 12.4)
        return np.asarray(np.clip((1 - reach) * 5, 0, 1), np.float32)
    edge = np.clip(np.minimum(grid, SIDE - grid) / 2.0, 0, 1)
    return np.minimum(edge[None], edge[:, None])


def _blend(picture: ImageArray, patch: FloatArray, mask: FloatArray, matrix: npt.NDArray) -> None:
    size = picture.shape[1::-1]
    weight = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_LINEAR)[..., None]
    laid = cv2.warpAffine(patch, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    picture[:] = np.clip(picture + weight * (laid - picture), 0, 255).astype(np.uint8)
