"""Draws a person into a picture, with exact annotations: training and test pictures of the miniature networks.

`people.Identity` says who it is, and `Appearance` how the person looks in one picture, so that one person can be drawn
in many pictures. Equal arguments give equal pictures.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from miniature import ImageArray
from miniature.body import CLOTHES, Clothes, draw_behind, draw_body, draw_ears, draw_glasses
from miniature.hair import draw_hair
from miniature.head import Light, Pose, View, cast_rays, draw_face, face_box, landmarks
from miniature.people import Colour, Identity
from miniature.styles import to_bytes
from miniature.texture import Expression

_SMALLEST_SCALE = 14.0

CLOTHES_COLOURS: dict[str, Colour] = {
    "red": (0.75, 0.15, 0.15),
    "orange": (0.90, 0.45, 0.12),
    "yellow": (0.90, 0.80, 0.25),
    "green": (0.18, 0.50, 0.28),
    "blue": (0.18, 0.32, 0.68),
    "purple": (0.45, 0.22, 0.55),
    "white": (0.92, 0.92, 0.90),
    "grey": (0.48, 0.48, 0.50),
    "black": (0.10, 0.10, 0.11),
}


@dataclass(frozen=True)
class Appearance:
    """How one person looks in one picture."""

    pose: Pose
    expression: Expression
    light: Light
    clothes: Clothes


@dataclass(frozen=True)
class FaceGeometry:
    """Pixels: `box` `[4]` (x0, y0, x1, y1), forehead to chin and ear to ear; `landmarks` `[5, 2]` (x, y):
    image-left eye, image-right eye, nose tip, image-left mouth corner, image-right mouth corner."""

    box: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]


def random_appearance(rng: np.random.Generator, widest_yaw: float = 40.0) -> Appearance:
    turn = float(np.clip(rng.normal(0, 0.45), -1, 1))
    pose = Pose(widest_yaw * turn, float(np.clip(rng.normal(2, 8), -20, 22)), float(rng.normal(0, 6)))
    expression = Expression(
        smile=float(rng.uniform(-0.4, 1.0)),
        mouth_open=float(max(0.0, rng.uniform(-0.9, 1.0))),
        eyes_open=float(np.clip(rng.normal(0.95, 0.2), 0.05, 1.3)),
        brow_raise=float(rng.uniform(-0.5, 1.0)),
        gaze=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
    )
    direction = (float(rng.normal(0, 0.7)), float(rng.normal(-0.4, 0.4)), float(rng.uniform(0.3, 1.2)))
    warmth = float(rng.normal(0, 0.06))
    light = Light(direction, float(rng.uniform(0.3, 0.75)), (1 + warmth, 1.0, 1 - warmth))
    name = str(rng.choice(list(CLOTHES_COLOURS)))
    return Appearance(pose, expression, light, Clothes(str(rng.choice(CLOTHES)), name, CLOTHES_COLOURS[name]))


def draw_person(picture: ImageArray, identity: Identity, appearance: Appearance, view: View) -> FaceGeometry:
    """Draw one person, head to shoulders, into the `[h, w, 3]` uint8 RGB picture (changed in place)."""
    x0, y0, x1, y1 = _window(picture, view)
    if x1 > x0 and y1 > y0:
        enlarge = max(1, int(np.ceil(_SMALLEST_SCALE / view.scale)))
        area = picture[y0:y1, x0:x1]
        big = cv2.resize(area, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_LINEAR)
        centre = tuple((np.array(view.centre) + 0.5) * enlarge - 0.5)
        near = View((float(centre[0]), float(centre[1])), view.scale * enlarge, view.pose)
        drawn = _draw_layers(np.asarray(big, np.uint8), identity, appearance, near, (x0 * enlarge, y0 * enlarge))
        picture[y0:y1, x0:x1] = cv2.resize(drawn, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return FaceGeometry(face_box(identity, view), landmarks(identity, appearance.expression, view))


def _window(picture: ImageArray, view: View) -> tuple[int, int, int, int]:
    reach = view.scale * np.array((-2.8, -2.1, 2.8, 3.4)) + np.tile(view.centre, 2)
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = np.clip(reach, 0, (width, height, width, height)).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def _draw_layers(
    area: ImageArray, identity: Identity, appearance: Appearance, view: View, origin: tuple[int, int]
) -> ImageArray:
    canvas = area.astype(np.float32) / 255
    light = appearance.light
    height, width = canvas.shape[:2]
    upright = View(view.centre, view.scale, replace(view.pose, roll=view.pose.roll * 0.5))
    body = cast_rays(upright, *origin, width, height)
    draw_behind(canvas, identity, body, light)
    draw_body(canvas, identity, appearance.clothes, body, light)
    reach = 2.15 * view.scale
    x0, y0 = (int(max(view.centre[axis] - origin[axis] - reach, 0)) for axis in (0, 1))
    x1, y1 = (int(max(view.centre[axis] - origin[axis] + reach, 0)) for axis in (0, 1))
    head = canvas[y0:y1, x0:x1]
    if head.size:
        corner = (origin[0] + x0, origin[1] + y0)
        rays = cast_rays(view, *corner, head.shape[1], head.shape[0])
        draw_ears(head, identity, view, rays, light)
        draw_face(head, identity, appearance.expression, rays, light)
        draw_hair(head, identity, rays, light)
        glasses = np.ascontiguousarray(head)
        draw_glasses(glasses, identity, view, corner)
        head[:] = glasses
    return to_bytes(canvas * 255 + 0.5)
