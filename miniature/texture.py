"""The painted skin of one face: colour and relief over the face plane, before pose and light."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from miniature.people import WRINKLED, Identity, darker
from miniature.plane import Plane, ellipse


@dataclass(frozen=True)
class Expression:
    """`smile` in [-0.4, 1], `mouth_open` and `eyes_open` in [0, 1], `brow_raise` in [-0.5, 1], gaze in [-1, 1]."""

    smile: float = 0.0
    mouth_open: float = 0.0
    eyes_open: float = 1.0
    brow_raise: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)


def mouth_corners(identity: Identity, expression: Expression) -> tuple[tuple[float, float], tuple[float, float]]:
    """Image-left and image-right mouth corner on the face plane, in head units."""
    features = identity.features
    half = features.mouth_width * (1 + 0.16 * expression.smile - 0.12 * expression.mouth_open)
    height = features.mouth_height - 0.075 * expression.smile
    return (-half, height), (half, height)


def paint_face(identity: Identity, expression: Expression, resolution: int) -> Plane:
    """Albedo `[h, w, 3]` RGB in [0, 1] and relief `[h, w]` in head units of a face seen from the front."""
    plane = Plane(resolution, identity.skin)
    _skin(plane, identity)
    _beard(plane, identity)
    _nose(plane, identity)
    for side in (-1.0, 1.0):
        _eye(plane, identity, expression, side)
        _brow(plane, identity, expression, side)
    _mouth(plane, identity, expression)
    _relief(plane, identity, expression)
    return plane


def _skin(plane: Plane, identity: Identity) -> None:
    rng = np.random.default_rng(identity.mark_seed)
    blotches = cv2.resize(rng.normal(0, 1, (9, 7)).astype(np.float32), plane.relief.shape[::-1])
    plane.albedo *= (1 + 0.025 * blotches)[..., None]
    red = (identity.skin[0], identity.skin[1] * 0.72, identity.skin[2] * 0.70)
    features = identity.features
    for side in (-1, 1):
        plane.tint(ellipse((side * 0.55, 0.30), (0.24, 0.18)), red, 0.35, 0.12)
    plane.tint(ellipse((0, features.nose_length), (0.14, 0.12)), red, 0.3, 0.07)
    for _ in range(int(rng.integers(0, 4))):
        spot = (float(rng.uniform(-0.7, 0.7)), float(rng.uniform(-0.6, 1.0)))
        plane.tint(ellipse(spot, (0.018, 0.018), 8), darker(identity.skin, 0.5), 0.8)
    if identity.age > WRINKLED:
        _wrinkles(plane, identity)


def _wrinkles(plane: Plane, identity: Identity) -> None:
    shade = darker(identity.skin, 0.7)
    strength = 0.7 * identity.age
    for row in range(3):
        line = identity.features.eye_height - 0.42 - 0.11 * row
        plane.tint(ellipse((0, line), (0.45, 0.012)), shade, strength, 0.012)
    for side in (-1, 1):
        bag = (side * identity.features.eye_spacing, identity.features.eye_height + 0.17)
        plane.tint(ellipse(bag, (0.15, 0.018)), shade, strength, 0.02)


def _beard(plane: Plane, identity: Identity) -> None:
    if identity.beard == "none":
        return
    features = identity.features
    opacity = {"stubble": 0.32, "moustache": 0.9, "beard": 0.88}[identity.beard]
    colour = darker(identity.hair.colour, 0.85)
    lip = features.mouth_height - 0.11
    moustache = [(-0.36, lip + 0.10), (-0.20, lip - 0.06), (0.20, lip - 0.06), (0.36, lip + 0.10), (0, lip + 0.05)]
    plane.tint(moustache, colour, opacity, 0.03)
    if identity.beard == "moustache":
        return
    cheek = [(-1.2, 0.05), (-0.85, 0.35), (-0.5, lip), (0.5, lip), (0.85, 0.35), (1.2, 0.05)]
    plane.tint([*cheek, (1.2, 1.6), (-1.2, 1.6)], colour, opacity, 0.06)


def _nose(plane: Plane, identity: Identity) -> None:
    features = identity.features
    dark = darker(identity.skin, 0.35)
    for side in (-1, 1):
        hole = (side * features.nose_width * 0.42, features.nose_length + 0.085)
        plane.tint(ellipse(hole, (0.055, 0.024)), dark, 0.8, 0.012)
        wing = (side * features.nose_width * 0.98, features.nose_length + 0.03)
        plane.tint(ellipse(wing, (0.022, 0.075)), darker(identity.skin, 0.7), 0.5, 0.025)
    plane.tint(ellipse((0, features.nose_length + 0.12), (features.nose_width * 0.8, 0.02)), dark, 0.35, 0.03)


def _eye(plane: Plane, identity: Identity, expression: Expression, side: float) -> None:
    features = identity.features
    centre = np.array((side * features.eye_spacing, features.eye_height))
    skin = identity.skin
    plane.tint(ellipse(tuple(centre), (0.26, 0.17)), darker(skin, 0.72), 0.4, 0.07)
    t = np.linspace(-1, 1, 13)
    half = features.eye_width
    tall = half * features.eye_roundness * 1.25 * max(expression.eyes_open, 0.04)
    slope = features.eye_tilt * half * t * side
    upper = np.stack([centre[0] + half * t, centre[1] - tall * (1 - t**2) + slope], 1)
    lower = np.stack([centre[0] + half * t, centre[1] + 0.5 * tall * (1 - t**2) + slope], 1)
    almond = np.concatenate([upper, lower[::-1]])
    plane.tint(almond, (0.90, 0.88, 0.86), 0.95)
    _iris(plane, identity, expression, (float(centre[0]), float(centre[1])), (upper, lower))
    lid = np.concatenate([upper - _down(0.022), (upper + _down(0.012))[::-1]])
    plane.tint(lid, darker(skin, 0.22), 0.9, 0.006)
    plane.tint(np.concatenate([lower, (lower + _down(0.018))[::-1]]), darker(skin, 0.5), 0.5, 0.008)
    crease = upper - _down(0.065)
    plane.tint(np.concatenate([crease, (crease + _down(0.018))[::-1]]), darker(skin, 0.6), 0.6, 0.01)


def _down(length: float) -> npt.NDArray[np.float64]:
    return np.array((0.0, length))


def _iris(
    plane: Plane,
    identity: Identity,
    expression: Expression,
    centre: tuple[float, float],
    lids: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
) -> None:
    half = identity.features.eye_width
    middle = (centre[0] + expression.gaze[0] * half * 0.4, centre[1] + expression.gaze[1] * half * 0.15 - 0.02)
    for radius, colour in (
        (0.50, darker(identity.eye_colour, 0.5)),
        (0.42, identity.eye_colour),
        (0.2, (0.02,) * 3),
    ):
        disc = ellipse(middle, (radius * half, radius * half))
        top = np.interp(disc[:, 0], lids[0][:, 0], lids[0][:, 1])
        bottom = np.interp(disc[:, 0], lids[1][:, 0], lids[1][:, 1])
        disc[:, 1] = np.clip(disc[:, 1], top, bottom)
        plane.tint(disc, colour, 1.0)
    if expression.eyes_open > 0.5:
        plane.tint(ellipse((middle[0] - 0.03, middle[1] - 0.03), (0.018, 0.018), 8), (1.0, 1.0, 1.0), 0.9)


def _brow(plane: Plane, identity: Identity, expression: Expression, side: float) -> None:
    features = identity.features
    t = np.linspace(0, 1, 9)
    x = side * (features.eye_spacing - 0.27 + 0.55 * t)
    arch = features.brow_arch * np.sin(np.pi * np.minimum(t * 1.3, 1)) - 0.05 * (1 - t) * expression.brow_raise
    y = features.eye_height - features.brow_gap - 0.06 * expression.brow_raise - arch
    thick = features.brow_thickness * (1 - 0.65 * t**2)
    points = np.concatenate([np.stack([x, y - thick], 1), np.stack([x, y + thick * 0.6], 1)[::-1]])
    plane.tint(points, darker(identity.hair.colour, 0.7), 0.8, 0.014)


def _mouth(plane: Plane, identity: Identity, expression: Expression) -> None:
    features = identity.features
    left, right = mouth_corners(identity, expression)
    t = np.linspace(-1, 1, 15)
    x = right[0] * t
    middle = left[1] + (features.mouth_height + 0.03 - left[1]) * (1 - t**2)
    gap = 0.20 * expression.mouth_open * (1 - t**4)
    bow = features.lip_fullness * ((1 - np.abs(t) ** 1.6) - 0.35 * np.exp(-((t / 0.16) ** 2)))
    full = features.lip_fullness * 1.25 * (1 - t**2)
    red, green, blue = identity.skin
    lip = (red * 0.82, green * 0.58, blue * 0.60)
    top, bottom = middle - gap * 0.35, middle + gap * 0.65
    plane.tint(_band(x, top - bow, top + 0.01), darker(lip, 0.92), 0.9, 0.012)
    plane.tint(_band(x, bottom, bottom + full), lip, 0.9, 0.014)
    if expression.mouth_open > 0.12:
        plane.tint(_band(x, top, bottom), (0.16, 0.05, 0.05), 1.0, 0.006)
        teeth = np.minimum(top + 0.14 * (1 - t**4), bottom)
        plane.tint(_band(x * 0.9, top, teeth), (0.93, 0.91, 0.87), 0.95, 0.006)
    else:
        plane.tint(_band(x, middle - 0.012, middle + 0.014), darker(lip, 0.35), 0.9, 0.006)
    _mouth_shadows(plane, identity, expression)


def _band(x: npt.NDArray, top: npt.NDArray, bottom: npt.NDArray) -> npt.NDArray:
    return np.concatenate([np.stack([x, top], 1), np.stack([x, bottom], 1)[::-1]])


def _mouth_shadows(plane: Plane, identity: Identity, expression: Expression) -> None:
    features = identity.features
    shade = darker(identity.skin, 0.66)
    below = features.mouth_height + 0.16 + 0.14 * expression.mouth_open
    plane.tint(ellipse((0, below), (0.22, 0.03)), shade, 0.55, 0.04)
    strength = 0.15 + 0.35 * max(expression.smile, 0) + 0.25 * identity.age
    t = np.linspace(0, 1, 7)
    for side, corner in zip((-1, 1), mouth_corners(identity, expression), strict=True):
        plane.tint(ellipse(corner, (0.03, 0.03)), shade, 0.6, 0.02)
        x = side * (features.nose_width + 0.03 + (abs(corner[0]) + 0.1 - features.nose_width) * t**1.3)
        y = features.nose_length + (corner[1] + 0.04 - features.nose_length) * t
        plane.tint(_band(x, y - 0.012, y + 0.02), shade, strength, 0.018)


def _relief(plane: Plane, identity: Identity, expression: Expression) -> None:
    features = identity.features
    tip = features.nose_length
    bridge = 0.5 * (features.eye_height + tip)
    plane.bump((0, bridge), (0.085, 0.5 * (tip - features.eye_height)), 0.62 * features.nose_height)
    plane.bump((0, tip), (features.nose_width * 0.62, 0.12), 0.6 * features.nose_height)
    for side in (-1, 1):
        plane.bump((side * features.nose_width * 0.75, tip + 0.04), (0.07, 0.07), 0.07)
        plane.bump((side * features.eye_spacing, features.eye_height), (0.20, 0.13), -0.11)
        plane.bump((side * features.eye_spacing, features.eye_height + 0.02), (0.13, 0.07), 0.05)
        brow = features.eye_height - features.brow_gap
        plane.bump((side * features.eye_spacing * 0.9, brow), (0.25, 0.08), 0.06)
        plane.bump((side * 0.55, 0.28 - 0.06 * expression.smile), (0.2, 0.17), 0.05 + 0.05 * max(expression.smile, 0))
    plane.bump((0, features.mouth_height), (0.26, 0.15), 0.09)
    plane.bump((0, features.face_length - 0.22), (0.2, 0.13), 0.09)
