"""The parts around the face: ears, neck, clothes, long hair and glasses, as implicit shapes in head units."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from miniature import FloatArray
from miniature.head import SKULL_DEPTH, Light, Rays, View, project
from miniature.people import Colour, Identity, darker

CLOTHES = ("crew neck", "v-neck", "striped", "suit", "turtleneck")


@dataclass(frozen=True)
class Clothes:
    kind: str
    colour_name: str
    colour: Colour


def blend(
    canvas: FloatArray, inside: FloatArray, colour: FloatArray | Colour, rays: Rays, softness: float = 0.0
) -> None:
    """Paint `colour` onto `canvas` where `inside` (a signed distance in head units) is positive."""
    mask = np.clip(inside / (softness + 1 / rays.scale) + 0.5, 0, 1)[..., None]
    canvas += mask * (np.asarray(colour, np.float32) - canvas)


def oval(rays: Rays, centre: tuple[float, float], radii: tuple[float, float]) -> FloatArray:
    """Approximate signed distance, positive inside an upright ellipse."""
    reach = np.hypot((rays.u - centre[0]) / radii[0], (rays.v - centre[1]) / radii[1])
    return (1 - reach) * np.float32(min(radii))


def draw_behind(canvas: FloatArray, identity: Identity, rays: Rays, light: Light) -> None:
    """Hair that hangs behind the neck; drawn before everything else of a person."""
    hair = identity.hair
    drop = {"long": 2.6, "bob": 1.25, "curly": 0.7}.get(hair.style)
    if drop is None:
        return
    width = hair.volume * 1.12
    shade = light.ambient * 0.7 + (1 - light.ambient) * 0.35
    waves = 0.82 + 0.18 * np.sin(rays.u * 17 + 2.5 * np.sin(rays.v * 2.3))
    colour = (waves * shade)[..., None] * (np.array(hair.colour, np.float32) + 0.02)
    side = width * (1 + 0.06 * np.sin(rays.v * 2.1 + identity.age * 9)) - np.abs(rays.u)
    blend(canvas, np.minimum(np.minimum(side, drop - rays.v), rays.v + 0.3), colour, rays, 0.12)
    blend(canvas, oval(rays, (0, -0.15), (width, 1.45 * hair.volume)), colour, rays, 0.05)


def draw_ears(canvas: FloatArray, identity: Identity, view: View, rays: Rays, light: Light) -> None:
    turned = np.sin(np.radians(view.pose.yaw))
    for side in (-1, 1):
        u = side * (1.0 - 0.03) * float(np.cos(np.radians(view.pose.yaw))) - 0.15 * turned
        shade = light.ambient + (1 - light.ambient) * (0.75 if side * light.direction[0] > 0 else 0.25)
        blend(canvas, oval(rays, (u, 0.02), (0.17, 0.30)), darker(identity.skin, shade), rays, 0.02)
        blend(
            canvas,
            oval(rays, (u + side * 0.02, 0.0), (0.09, 0.19)),
            darker(identity.skin, shade * 0.7),
            rays,
            0.06,
        )


def draw_body(canvas: FloatArray, identity: Identity, clothes: Clothes, rays: Rays, light: Light) -> None:
    """Neck and shoulders, down to the lower edge of the canvas."""
    chin = identity.features.face_length
    side = np.clip(0.5 + 0.5 * rays.u * np.sign(light.direction[0]), 0, 1)
    below = np.clip((rays.v - chin + 0.1) * 2.0, 0.45, 1)
    shade = (light.ambient + (1 - light.ambient) * side) * below * 0.92
    neck = 0.60 + 0.10 * (identity.features.jaw > 0.05) + 0.25 * np.clip(rays.v - chin - 0.35, 0, 1) ** 2
    skin = shade[..., None] * np.array(identity.skin, np.float32)
    blend(canvas, np.minimum(neck - np.abs(rays.u), rays.v - 0.5), skin, rays, 0.02)
    slope = chin + 0.52 + 0.10 * rays.u**2 + 0.12 * np.maximum(np.abs(rays.u) - 1.7, 0) ** 2 * 8
    folds = 0.9 + 0.1 * np.sin(rays.u * 5 + rays.v * 3) * np.sin(rays.v * 2.3 - rays.u)
    cloth_shade = (light.ambient + (1 - light.ambient) * side) * folds
    _draw_clothes(canvas, clothes, rays, (rays.v - slope, cloth_shade), chin)


def _draw_clothes(
    canvas: FloatArray, clothes: Clothes, rays: Rays, cut: tuple[FloatArray, FloatArray], chin: float
) -> None:
    inside, shade = cut
    colour = shade[..., None] * np.array(clothes.colour, np.float32)
    if clothes.kind == "striped":
        colour = np.where((np.sin(rays.v * 14) > 0.2)[..., None], colour, shade[..., None] * np.float32(0.92))
    if clothes.kind == "turtleneck":
        blend(canvas, np.minimum(0.74 - np.abs(rays.u), rays.v - chin - 0.12), colour, rays, 0.02)
    if clothes.kind == "suit":
        blend(canvas, inside, shade[..., None] * np.ones(3, np.float32) * 0.95, rays)
        tie = np.minimum(0.10 + 0.05 * (rays.v - chin) - np.abs(rays.u), rays.v - chin - 0.6)
        blend(canvas, tie, colour[..., ::-1] * 0.8, rays)
        inside = np.minimum(inside, np.abs(rays.u) - 0.62 + 0.28 * (rays.v - chin - 0.4))
    depth = {"v-neck": chin + 1.25 - 1.6 * np.abs(rays.u), "crew neck": chin + 0.72 - 0.5 * rays.u**2}.get(clothes.kind)
    if depth is not None:
        inside = np.minimum(inside, rays.v - depth)
        blend(
            canvas,
            np.minimum(depth + 0.03 - rays.v, 0.75 - np.abs(rays.u) - 2 * (rays.v < chin)),
            canvas.copy(),
            rays,
        )
    blend(canvas, inside, colour, rays, 0.02)


def draw_glasses(canvas: FloatArray, identity: Identity, view: View, origin: tuple[int, int]) -> None:
    """Rims and bridge in front of the eyes; `origin` is the canvas's top-left corner in the picture."""
    if identity.glasses == "none":
        return
    features = identity.features
    angle = np.linspace(0, 2 * np.pi, 28)
    squareness = 0.75 if identity.mark_seed % 2 else 1.0
    rim_x = 0.31 * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** squareness
    rim_y = 0.23 * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** squareness
    width = view.scale * (0.085 if identity.glasses == "thick" else 0.035)
    colour = darker(identity.hair.colour, 0.4) if identity.glasses == "thick" else (0.35, 0.33, 0.30)
    for side in (-1, 1):
        centre = side * max(features.eye_spacing, 0.42)
        line = np.column_stack([centre + rim_x, features.eye_height + 0.05 + rim_y, _front(rim_x, centre)])
        _stroke(canvas, project(identity, view, line) - origin, colour, width)
        temple = np.array([(centre + side * 0.3, features.eye_height, 0.72), (side * 0.99, features.eye_height, 0.1)])
        _stroke(canvas, project(identity, view, temple) - origin, colour, width)
    bridge = np.array([(-0.13, features.eye_height, 1.22), (0.13, features.eye_height, 1.22)])
    _stroke(canvas, project(identity, view, bridge) - origin, colour, width)


def _front(rim_x: npt.NDArray[np.float64], centre: float) -> npt.NDArray[np.float64]:
    return np.asarray(SKULL_DEPTH * np.sqrt(np.maximum(1 - (rim_x + centre) ** 2, 0.1)) + 0.06)


def _stroke(canvas: FloatArray, points: npt.NDArray[np.float64], colour: Colour, width: float) -> None:
    fixed = np.round(np.clip(points, -2000, 4000) * 16).astype(np.int32)
    opacity = min(1.0, width)
    before = canvas.copy() if opacity < 1 else canvas
    cv2.polylines(canvas, [fixed], False, colour, max(1, round(width)), cv2.LINE_8, 4)
    if opacity < 1:
        canvas += (1 - opacity) * (before - canvas)
