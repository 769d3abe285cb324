"""A head as a relief on an ellipsoid: pose, ray casting, light (orthographic view, Lambert shading)."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from miniature import FloatArray
from miniature.people import Colour, Identity
from miniature.plane import HALF_HEIGHT, HALF_WIDTH, Plane
from miniature.texture import Expression, mouth_corners, paint_face

SKULL_DEPTH = 1.15


@dataclass(frozen=True)
class Pose:
    """Degrees: `yaw` > 0 looks to the image's right, `pitch` > 0 down, `roll` > 0 turns clockwise."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class Light:
    """`direction` towards the light in picture axes (Z to the viewer); `ambient` in [0, 1]; RGB `colour`."""

    direction: tuple[float, float, float] = (-0.4, -0.5, 0.8)
    ambient: float = 0.5
    colour: Colour = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class View:
    """Position of a head in the picture: `centre` (x, y) and `scale`, half the face's width, both in pixels."""

    centre: tuple[float, float]
    scale: float
    pose: Pose


@dataclass(frozen=True)
class Rays:
    """Picture points in upright head units `u`, `v`, each `[h, w]` float32, and the head's rotation `[3, 3]`."""

    u: FloatArray
    v: FloatArray
    rotation: FloatArray
    scale: float


def rotation_of(pose: Pose) -> FloatArray:
    """Head axes to camera axes, without roll."""
    yaw, pitch = np.radians((pose.yaw, pose.pitch))
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    return np.asarray(about_y @ about_x, np.float32)


def cast_rays(view: View, x0: int, y0: int, width: int, height: int) -> Rays:
    """Rays through the pixels of the window with this top-left corner and size."""
    x = (np.arange(x0, x0 + width, dtype=np.float32) - view.centre[0]) / view.scale
    y = (np.arange(y0, y0 + height, dtype=np.float32) - view.centre[1]) / view.scale
    roll = np.radians(view.pose.roll)
    cosine, sine = np.float32(np.cos(roll)), np.float32(np.sin(roll))
    u = x[None] * cosine + y[:, None] * sine
    v = y[:, None] * cosine - x[None] * sine
    return Rays(u, v, rotation_of(view.pose), view.scale)


def jaw_width(identity: Identity, v: npt.ArrayLike) -> FloatArray:
    """Width of the head relative to the ellipse at upright height `v`."""
    height = np.asarray(v, np.float32) / identity.features.face_length
    return np.asarray(1 + identity.features.jaw * np.exp(-(((height - 0.72) / 0.28) ** 2)), np.float32)


def hit_skull(identity: Identity, rays: Rays, inflate: float) -> tuple[FloatArray, FloatArray]:
    """Head coordinates `[3, h, w]` where each ray meets the inflated skull, and its coverage `[h, w]`."""
    axes = np.array([1.0, identity.features.face_length, SKULL_DEPTH], np.float32)
    axes = axes * (1 + (inflate - 1) * np.array([1.0, 0.8, 1.0], np.float32))
    across, down, ray = (rays.rotation.T / axes[:, None]).T
    u, v = rays.u / jaw_width(identity, rays.v), rays.v
    along = u * (across @ ray) + v * (down @ ray)
    length = ray @ ray
    beyond = u * u * (across @ across) + u * v * (2 * (across @ down)) + v * v * (down @ down) - 1
    inside = along * along - length * beyond
    depth = (np.sqrt(np.maximum(inside, 0)) - along) / length
    coverage = np.clip(inside * np.float32(rays.scale * 0.45) + np.float32(0.5), 0, 1)
    right, below, toward = rays.rotation
    points = np.stack([u * right[axis] + v * below[axis] + depth * toward[axis] for axis in range(3)])
    return points, coverage


def project(identity: Identity, view: View, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Picture positions `[n, 2]` of head points `[n, 3]`."""
    seen = np.asarray(points, np.float64) @ rotation_of(view.pose).T
    u = seen[:, 0] * jaw_width(identity, seen[:, 1])
    roll = np.radians(view.pose.roll)
    x = u * np.cos(roll) - seen[:, 1] * np.sin(roll)
    y = u * np.sin(roll) + seen[:, 1] * np.cos(roll)
    return np.asarray(np.stack([x, y], 1) * view.scale + view.centre)


def skull_depth(identity: Identity, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Z of the skull in front of the face-plane point, in head units."""
    inside = 1 - np.square(x) - np.square(np.asarray(y) / identity.features.face_length)
    return np.asarray(SKULL_DEPTH * np.sqrt(np.maximum(inside, 0)))


def draw_face(canvas: FloatArray, identity: Identity, expression: Expression, rays: Rays, light: Light) -> None:
    """Paint the face onto `canvas`, the `[h, w, 3]` RGB float window that the rays were cast through."""
    points, coverage = hit_skull(identity, rays, 1.0)
    plane = paint_face(identity, expression, int(np.clip(rays.scale * 1.1, 24, 110)))
    x, y = _parallax(points, plane, rays.rotation)
    albedo = _look_up(plane.albedo, plane, x, y)
    shade = _shading(identity, plane, points, (x, y), rays.rotation, light)
    sideways = np.clip((points[2] + 0.05) * 4, 0, 1)[..., None]
    colour = (albedo * sideways + np.array(identity.skin, np.float32) * (1 - sideways)) * shade
    canvas += coverage[..., None] * (colour - canvas)


def _parallax(points: FloatArray, plane: Plane, rotation: FloatArray) -> tuple[FloatArray, FloatArray]:
    toward = rotation[2]
    x, y = points[0], points[1]
    lift = _look_up(plane.relief, plane, x, y)
    for _ in range(2):
        x = points[0] + lift * (toward[0] / max(toward[2], np.float32(0.3)))
        y = points[1] + lift * (toward[1] / max(toward[2], np.float32(0.3)))
        lift = _look_up(plane.relief, plane, x, y)
    return x, y


def _look_up(image: FloatArray, plane: Plane, x: FloatArray, y: FloatArray) -> FloatArray:
    column = (x + HALF_WIDTH) * plane.resolution - 0.5
    row = (y + HALF_HEIGHT) * plane.resolution - 0.5
    found = cv2.remap(image, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32)


def _shading(
    identity: Identity,
    plane: Plane,
    points: FloatArray,
    at: tuple[FloatArray, FloatArray],
    rotation: FloatArray,
    light: Light,
) -> FloatArray:
    normal = _normal(identity, plane, points, at)
    direction = unit(light.direction)
    local = rotation.T @ direction
    diffuse = np.maximum(dot(normal, local), 0)
    cast = _look_up(plane.relief, plane, at[0] + 0.16 * local[0], at[1] + 0.16 * local[1])
    shadow = np.clip((cast - _look_up(plane.relief, plane, *at)) * 4 - 0.1, 0, 0.6) * np.clip(points[2] * 2, 0, 1)
    half = rotation.T @ unit(direction + np.array((0, 0, 1), np.float32))
    gloss = np.maximum(dot(normal, half), 0) ** 24
    lit = np.float32((1 - light.ambient) * 1.25) * diffuse * (1 - shadow) + np.float32(0.10) * gloss
    return np.asarray(light.ambient + lit[..., None] * np.array(light.colour, np.float32), np.float32)


def _normal(identity: Identity, plane: Plane, points: FloatArray, at: tuple[FloatArray, FloatArray]) -> FloatArray:
    axes = np.array([1.0, identity.features.face_length, SKULL_DEPTH], np.float32)
    normal = points / (axes**2)[:, None, None]
    normal /= length(normal)
    front = np.clip(points[2] * 2, 0, 1)
    for axis, step in enumerate(((1, 0), (0, 1))):
        slope = cv2.Sobel(plane.relief, cv2.CV_32F, *step, scale=plane.resolution / 8)
        normal[axis] -= front * _look_up(np.asarray(slope, np.float32), plane, *at)
    return np.asarray(normal / length(normal))


def unit(vector: npt.ArrayLike) -> FloatArray:
    values = np.asarray(vector, np.float32)
    return np.asarray(values / np.linalg.norm(values))


def dot(vectors: FloatArray, direction: FloatArray) -> FloatArray:
    return np.asarray(vectors[0] * direction[0] + vectors[1] * direction[1] + vectors[2] * direction[2])


def length(vectors: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(vectors[0] ** 2 + vectors[1] ** 2 + vectors[2] ** 2) + np.float32(1e-6))


def landmarks(identity: Identity, expression: Expression, view: View) -> npt.NDArray[np.float32]:
    """Image-left eye, image-right eye, nose tip, image-left and -right mouth corner: `[5, 2]` pixels."""
    features = identity.features
    eyes = [(side * features.eye_spacing, features.eye_height) for side in (-1, 1)]
    flat = np.array([*eyes, (0.0, features.nose_length), *mouth_corners(identity, expression)])
    lift = np.array([-0.04, -0.04, 0.62 * features.nose_height + 0.05, 0.06, 0.06])
    depth = skull_depth(identity, flat[:, 0], flat[:, 1]) + lift
    return project(identity, view, np.column_stack([flat, depth])).astype(np.float32)


def face_box(identity: Identity, view: View) -> npt.NDArray[np.float32]:
    """Tight box (x0, y0, x1, y1) in pixels of what is visible from forehead to chin and from ear to ear."""
    top = max(-1.0, min(identity.hair.line, -0.6)) if identity.hair.style != "bald" else -1.0
    y, angle = np.meshgrid(np.linspace(top, identity.features.face_length, 24), np.linspace(-1.6, 1.6, 33))
    ring = np.sqrt(np.maximum(1 - (y / identity.features.face_length) ** 2, 0))
    shell = np.stack([ring * np.sin(angle), y, SKULL_DEPTH * ring * np.cos(angle)], -1).reshape(-1, 3)
    features = identity.features
    nose = (
        0.0,
        features.nose_length,
        float(skull_depth(identity, 0, features.nose_length)) + features.nose_height,
    )
    spots = project(identity, view, np.vstack([shell, nose]))
    return np.concatenate([spots.min(0), spots.max(0)], dtype=np.float32)
