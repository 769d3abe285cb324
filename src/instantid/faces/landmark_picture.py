"""The landmark picture that IdentityNet sees: landmarks from photo to picture, and how they are drawn."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""RGB of each landmark; a limb has the colour of its first landmark."""
NOSE = 2
LIMBS = ((0, NOSE), (1, NOSE), (3, NOSE), (4, NOSE))
LIMB_HALF_WIDTH = 4
LIMB_BRIGHTNESS = 0.6
POINT_RADIUS = 10


def place_landmarks(
    landmarks: NDArray[np.float32], source: tuple[int, int], target: tuple[int, int]
) -> NDArray[np.float32]:
    """Landmarks [..., 2] of a photo that is fitted whole and centred into the picture; sizes are (width, height).

    One scale and an offset, never a stretch; equal sizes change nothing, as in the reference.
    """
    scale = min(target[0] / source[0], target[1] / source[1])
    offset = (np.array(target) - np.array(source) * scale) / 2
    placed: NDArray[np.float64] = landmarks.astype(np.float64) * scale + offset
    return placed.astype(np.float32)


def draw_landmarks(landmarks: NDArray[np.float32], width: int, height: int) -> NDArray[np.uint8]:
    """Draw five landmarks [5, 2] (x, y in pixels) on black; HWC RGB uint8, values in [0, 255].

    Four limbs to the nose, dimmed once all are drawn, then five filled circles in full colour: to the last bit what
    the reference's `draw_kps` draws for the same float32 landmarks.
    """
    limbs = np.zeros((height, width, 3))
    for first, second in LIMBS:
        cv2.fillConvexPoly(limbs, _limb(landmarks[first], landmarks[second]), COLOURS[first])
    picture: NDArray[np.uint8] = (limbs * LIMB_BRIGHTNESS).astype(np.uint8)
    for (x, y), colour in zip(landmarks, COLOURS, strict=True):
        cv2.circle(picture, (int(x), int(y)), POINT_RADIUS, colour, cv2.FILLED)
    return picture


def _limb(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.int32]:
    dx, dy = first - second
    length = (dx**2 + dy**2) ** 0.5
    angle = math.degrees(math.atan2(dy, dx))
    x, y = np.stack([first, second]).mean(axis=0)
    axes = (int(length / 2), LIMB_HALF_WIDTH)
    return np.asarray(cv2.ellipse2Poly((int(x), int(y)), axes, int(angle), 0, 360, 1), np.int32)
