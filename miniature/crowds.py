"""Training pictures for the detector: they show any number of faces, drawn or photographed, on any background."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from miniature import FloatArray, ImageArray
from miniature.backgrounds import BACKGROUNDS, random_background
from miniature.distractors import add_distractor
from miniature.head import Pose, View
from miniature.lfw_faces import paste_face
from miniature.painter import draw_person, random_appearance
from miniature.people import random_identity
from miniature.styles import STYLES, apply_style, degrade

SIDE = 320
MOST_FACES = 8


@dataclass(frozen=True)
class Crowd:
    """`picture` `[320, 320, 3]` uint8 RGB; `faces` `[n, 15]`: box (4), landmarks (10), landmark weight."""

    picture: ImageArray
    faces: FloatArray


def draw_crowd(seed: int) -> Crowd:
    """Draw picture number `seed`. Three pictures in ten show no face."""
    rng = np.random.default_rng([seed, 0xC0])
    picture = random_background(str(rng.choice(BACKGROUNDS, p=(0.1, 0.1, 0.15, 0.2, 0.45))), SIDE, SIDE, rng)
    for _ in range(int(rng.choice((0, 1, 2, 4), p=(0.4, 0.2, 0.2, 0.2)))):
        add_distractor(picture, rng)
    faces: list[FloatArray] = []
    wanted = int(rng.choice((0, 1, 2, 3, 5), p=(0.30, 0.34, 0.18, 0.11, 0.07)))
    for _ in range(wanted):
        face = _add_face(picture, faces, rng)
        if face is not None:
            faces.append(face)
    if rng.random() < 0.12:
        picture = apply_style(picture, str(rng.choice(STYLES[1:])))
    stacked = np.stack(faces) if faces else np.zeros((0, 15), np.float32)
    return Crowd(degrade(picture, rng), stacked)


def draw_faceless(seed: int) -> ImageArray:
    """Draw a `[320, 320, 3]` uint8 RGB picture that is full of things that resemble faces."""
    rng = np.random.default_rng([seed, 0xFACE])
    picture = random_background(str(rng.choice(BACKGROUNDS, p=(0.05, 0.05, 0.1, 0.2, 0.6))), SIDE, SIDE, rng)
    for _ in range(int(rng.integers(0, 8))):
        add_distractor(picture, rng)
    return degrade(picture, rng)


def _add_face(picture: ImageArray, faces: list[FloatArray], rng: np.random.Generator) -> FloatArray | None:
    scale = float(np.exp(rng.uniform(np.log(4.0), np.log(140.0))))
    centre = rng.uniform(0, SIDE, 2)
    if scale > 50:
        centre = rng.uniform(0.3 * SIDE, 0.7 * SIDE, 2)
    reach = np.array((-1.3, -1.7, 1.3, 1.7)) * scale + np.tile(centre, 2)
    if any(_overlap(reach, face[:4]) for face in faces):
        return None
    identity = random_identity(int(rng.integers(2**31)))
    appearance = random_appearance(rng, 55.0)
    kind = rng.random()
    roll = float(rng.normal(0, 10))
    pose = replace(appearance.pose, roll=roll)
    if kind < 0.5:
        drawn = draw_person(picture, identity, appearance, View((centre[0], centre[1]), scale, pose))
        return _row(drawn.box, drawn.landmarks, 1.0)
    frontal = Pose(roll=roll)
    eyes = centre + scale * 0.47 * np.array([(-1, -0.25), (1, -0.25)])
    if kind < 0.85:
        drawn = draw_person(picture, identity, appearance, View((centre[0], centre[1]), scale, frontal))
        eyes = drawn.landmarks[:2]
    skin = None if rng.random() < 0.3 else identity.skin
    box, landmarks = paste_face(picture, np.asarray(eyes, np.float32), skin, rng)
    return _row(box, landmarks, 0.3)


def _overlap(first: npt.NDArray, second: npt.NDArray) -> bool:
    return bool((np.minimum(first[2:], second[2:]) > np.maximum(first[:2], second[:2])).all())


def _row(box: FloatArray, landmarks: FloatArray, weight: float) -> FloatArray:
    return np.concatenate([box, landmarks.reshape(-1), [weight]]).astype(np.float32)
