"""Aligned 112x112 pictures of drawn people: the recogniser's training and test data."""

import cv2
import numpy as np
import numpy.typing as npt

from build_tools.face_graph.alignment import TEMPLATE
from miniature import ImageArray
from miniature.backgrounds import BACKGROUNDS, random_background
from miniature.head import Pose, View
from miniature.painter import draw_person, random_appearance
from miniature.people import random_identity
from miniature.styles import degrade

SIDE = 112


def aligned_picture(person: int, shot: int, jitter: float = 1.5) -> ImageArray:
    """Draw shot number `shot` of person number `person`, `[112, 112, 3]` uint8 RGB.

    It is aligned by its true landmarks, each moved by `jitter` pixels (standard deviation) as a detector's error.
    """
    rng = np.random.default_rng([person, shot, 0xFA])
    scale = float(rng.uniform(26, 52))
    side = round(4 * scale)
    picture = random_background(str(rng.choice(BACKGROUNDS)), side, side, rng)
    appearance = random_appearance(rng)
    view = View((side / 2, side / 2), scale, Pose(appearance.pose.yaw, appearance.pose.pitch, appearance.pose.roll))
    face = draw_person(picture, random_identity(person), appearance, view)
    moved = face.landmarks + rng.normal(0, jitter * scale / 37, (5, 2))
    return align(degrade(picture, rng, 0.5), moved)


def align(picture: ImageArray, landmarks: npt.NDArray) -> ImageArray:
    """The `[112, 112, 3]` crop whose landmarks `[5, 2]` fit the template best (Umeyama, 1991; no reflection)."""
    matrix = similarity_matrix(np.asarray(landmarks, np.float64), TEMPLATE)
    return np.asarray(cv2.warpAffine(picture, matrix, (SIDE, SIDE)), np.uint8)


def similarity_matrix(source: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The `[2, 3]` least-squares similarity from points `[n, 2]` to points `[n, 2]`, as complex numbers."""
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    centred = z - z.mean()
    factor = np.vdot(centred, w - w.mean()) / np.vdot(centred, centred)
    shift = w.mean() - factor * z.mean()
    return np.array([(factor.real, -factor.imag, shift.real), (factor.imag, factor.real, shift.imag)])
