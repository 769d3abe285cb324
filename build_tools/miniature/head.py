"""A head as a relief on an ellipsoid: pose, ray casting, light, hair (orthographic view, Lambert shading)."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from build_tools.miniature.people import Colour, Identity
from build_tools.miniature.texture import HALF_HEIGHT, HALF_WIDTH, Expression, FloatArray, Plane, mouth_corners, paint_face

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
    """Where a head stands in the picture: `centre` (x, y) and half the face's width, both in pixels."""

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
    return (about_y @ about_x).astype(np.float32)


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
    """How much wider than the ellipse the head is at upright height `v`."""
    height = np.asarray(v, np.float32) / identity.features.face_length
    return 1 + identity.features.jaw * np.exp(-(((height - 0.72) / 0.28) ** 2))


def hit_skull(identity: Identity, rays: Rays, inflate: float) -> tuple[FloatArray, FloatArray]:
    """Head coordinates `[h, w, 3]` where each ray meets the inflated skull, and its coverage `[h, w]`."""
    axes = np.array([1.0, identity.features.face_length, SKULL_DEPTH], np.float32)
    axes = axes * (1 + (inflate - 1) * np.array([1.0, 0.8, 1.0], np.float32))
    turned = rays.rotation.T / axes[:, None]
    u = rays.u / jaw_width(identity, rays.v)
    origin = u[..., None] * turned[:, 0] + rays.v[..., None] * turned[:, 1]
    ray = turned[:, 2]
    along = origin @ ray
    length = float(ray @ ray)
    inside = along**2 - length * ((origin**2).sum(-1) - 1)
    depth = (np.sqrt(np.maximum(inside, 0)) - along) / length
    coverage = np.clip(inside * rays.scale * 0.45 + 0.5, 0, 1)
    return (origin + depth[..., None] * ray) * axes, coverage


def project(identity: Identity, view: View, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Picture positions `[n, 2]` of head points `[n, 3]`."""
    seen = np.asarray(points, np.float64) @ rotation_of(view.pose).T
    u = seen[:, 0] * jaw_width(identity, seen[:, 1])
    roll = np.radians(view.pose.roll)
    x = u * np.cos(roll) - seen[:, 1] * np.sin(roll)
    y = u * np.sin(roll) + seen[:, 1] * np.cos(roll)
    return np.stack([x, y], 1) * view.scale + view.centre


def skull_depth(identity: Identity, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Z of the skull in front of the face-plane point, in head units."""
    inside = 1 - np.square(x) - np.square(np.asarray(y) / identity.features.face_length)
    return SKULL_DEPTH * np.sqrt(np.maximum(inside, 0))


def draw_face(canvas: FloatArray, identity: Identity, expression: Expression, rays: Rays, light: Light) -> None:
    """Lay the face over `canvas`, the `[h, w, 3]` RGB float window that the rays were cast through."""
    points, coverage = hit_skull(identity, rays, 1.0)
    plane = paint_face(identity, expression, int(np.clip(rays.scale * 1.1, 24, 110)))
    x, y = _parallax(points, plane, rays.rotation)
    albedo = _look_up(plane.albedo, plane, x, y)
    shade = _shading(identity, plane, points, (x, y), rays.rotation, light)
    sideways = np.clip((points[..., 2] + 0.05) * 4, 0, 1)[..., None]
    colour = (albedo * sideways + np.array(identity.skin, np.float32) * (1 - sideways)) * shade
    canvas += coverage[..., None] * (colour - canvas)


def _parallax(points: FloatArray, plane: Plane, rotation: FloatArray) -> tuple[FloatArray, FloatArray]:
    toward = rotation[2]
    x, y = points[..., 0], points[..., 1]
    lift = _look_up(plane.relief, plane, x, y)
    for _ in range(2):
        x = points[..., 0] + lift * toward[0] / max(float(toward[2]), 0.3)
        y = points[..., 1] + lift * toward[1] / max(float(toward[2]), 0.3)
        lift = _look_up(plane.relief, plane, x, y)
    return x, y


def _look_up(image: FloatArray, plane: Plane, x: FloatArray, y: FloatArray) -> FloatArray:
    column = (x + HALF_WIDTH) * plane.resolution - 0.5
    row = (y + HALF_HEIGHT) * plane.resolution - 0.5
    return cv2.remap(image, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _shading(
    identity: Identity,
    plane: Plane,
    points: FloatArray,
    at: tuple[FloatArray, FloatArray],
    rotation: FloatArray,
    light: Light,
) -> FloatArray:
    axes = np.array([1.0, identity.features.face_length, SKULL_DEPTH], np.float32)
    normal = points / axes**2
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-6
    slopes = [cv2.Sobel(plane.relief, cv2.CV_32F, *step, scale=plane.resolution / 8) for step in ((1, 0), (0, 1))]
    front = np.clip(points[..., 2] * 2, 0, 1)
    for axis, slope in enumerate(slopes):
        normal[..., axis] -= front * _look_up(slope, plane, *at)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-6
    direction = np.array(light.direction, np.float32)
    direction /= np.linalg.norm(direction)
    local = rotation.T @ direction
    diffuse = np.clip(normal @ local, 0, None)
    cast = _look_up(plane.relief, plane, at[0] + 0.16 * local[0], at[1] + 0.16 * local[1])
    shadow = np.clip((cast - _look_up(plane.relief, plane, *at)) * 4 - 0.1, 0, 0.6) * front
    half = direction + (0, 0, 1)
    gloss = np.clip(normal @ (rotation.T @ (half / np.linalg.norm(half))).astype(np.float32), 0, 1) ** 24
    lit = (1 - light.ambient) * 1.25 * diffuse * (1 - shadow) + 0.10 * gloss
    return light.ambient + lit[..., None] * np.array(light.colour, np.float32)


def draw_hair(canvas: FloatArray, identity: Identity, rays: Rays, light: Light) -> None:
    """Lay the hair that grows on the skull over `canvas`; long hair's length is `body.draw_behind`'s."""
    hair = identity.hair
    if hair.style == "bald":
        return
    points, coverage = hit_skull(identity, rays, hair.volume)
    rng = np.random.default_rng(identity.mark_seed)
    strands = _strands(points, hair.style, rng)
    edge = 0.05 if hair.style == "cropped" else 0.14
    mask = np.clip(_hair_field(identity, points, strands) / edge + 0.5, 0, 1) * coverage
    if hair.style == "cropped":
        mask *= 0.75
    normal = points / (np.linalg.norm(points, axis=-1, keepdims=True) + 1e-6)
    direction = np.array(light.direction, np.float32)
    local = rays.rotation.T @ (direction / np.linalg.norm(direction))
    diffuse = np.clip(normal @ local, 0, 1)
    sheen = 0.45 * diffuse**6
    shade = light.ambient * 0.8 + (1 - light.ambient) * 1.1 * diffuse + sheen
    shade = shade * (0.85 + 0.5 * strands)
    colour = shade[..., None] * (np.array(hair.colour, np.float32) + 0.03) * np.array(light.colour, np.float32)
    canvas += mask[..., None] * (colour - canvas)


def _strands(points: FloatArray, style: str, rng: np.random.Generator) -> FloatArray:
    curly = style in ("curly", "cropped")
    tile = cv2.resize(rng.random((24, 24) if curly else (6, 40), np.float32), (240, 240), interpolation=cv2.INTER_CUBIC)
    x = (points[..., 0] + 0.35 * points[..., 2]) * 60 + 120
    y = (points[..., 1] - 0.4 * points[..., 0] ** 2) * 50 + 100
    return cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _hair_field(identity: Identity, points: FloatArray, strands: FloatArray) -> FloatArray:
    """Positive where hair grows: above the hairline in front, behind the cheeks at the sides."""
    hair = identity.hair
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    line = hair.line + 0.38 * x**2 + 0.16 * (strands - 0.5)
    if hair.style == "side-parted":
        line = line + 0.22 * np.abs(x - hair.parting) - 0.12
    if hair.style == "fringe":
        line = line - 0.2 * x**2
    front = line - y
    length = {"bob": 1.0, "long": 3.0, "curly": 0.5, "fringe": 0.2}.get(hair.style, -0.02)
    sides = np.minimum(length - y, 0.42 - z + 0.1 * (strands - 0.5) + 0.15 * np.clip(-y, -0.3, 1))
    return np.maximum(front, sides)


def landmarks(identity: Identity, expression: Expression, view: View) -> npt.NDArray[np.float32]:
    """Image-left eye, image-right eye, nose tip, image-left and -right mouth corner: `[5, 2]` pixels."""
    features = identity.features
    eyes = [(side * features.eye_spacing, features.eye_height) for side in (-1, 1)]
    flat = np.array([*eyes, (0.0, features.nose_length), *mouth_corners(identity, expression)])
    lift = np.array([-0.04, -0.04, 0.62 * features.nose_height + 0.05, 0.06, 0.06])
    depth = skull_depth(identity, flat[:, 0], flat[:, 1]) + lift
    return project(identity, view, np.column_stack([flat, depth])).astype(np.float32)


def face_box(identity: Identity, view: View) -> npt.NDArray[np.float32]:
    """Tight box (x0, y0, x1, y1) in pixels: visible forehead to chin, ear to ear as far as seen."""
    top = max(-1.0, min(identity.hair.line, -0.6)) if identity.hair.style != "bald" else -1.0
    y, angle = np.meshgrid(np.linspace(top, identity.features.face_length, 24), np.linspace(-1.6, 1.6, 33))
    ring = np.sqrt(np.maximum(1 - (y / identity.features.face_length) ** 2, 0))
    shell = np.stack([ring * np.sin(angle), y, SKULL_DEPTH * ring * np.cos(angle)], -1).reshape(-1, 3)
    features = identity.features
    nose = (0.0, features.nose_length, float(skull_depth(identity, 0, features.nose_length)) + features.nose_height)
    spots = project(identity, view, np.vstack([shell, nose]))
    return np.concatenate([spots.min(0), spots.max(0)]).astype(np.float32)
