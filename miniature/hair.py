"""Hair on a head: a larger skull, masked by the hairline."""

import cv2
import numpy as np

from miniature import FloatArray
from miniature.head import Light, Rays, dot, hit_skull, length, unit
from miniature.people import Identity


def draw_hair(canvas: FloatArray, identity: Identity, rays: Rays, light: Light) -> None:
    """Paint the hair on the skull onto `canvas`; `body.draw_behind` paints long hair that hangs down."""
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
    diffuse = np.clip(dot(points / length(points), rays.rotation.T @ unit(light.direction)), 0, 1)
    sheen = 0.45 * diffuse**6
    shade = light.ambient * 0.8 + (1 - light.ambient) * 1.1 * diffuse + sheen
    shade = shade * (0.85 + 0.5 * strands)
    colour = shade[..., None] * (np.array(hair.colour, np.float32) + 0.03) * np.array(light.colour, np.float32)
    canvas += mask[..., None] * (colour - canvas)


def _strands(points: FloatArray, style: str, rng: np.random.Generator) -> FloatArray:
    curly = style in ("curly", "cropped")
    noise = rng.random((24, 24) if curly else (6, 40), np.float32)
    tile = cv2.resize(noise, (240, 240), interpolation=cv2.INTER_CUBIC)
    x = (points[0] + 0.35 * points[2]) * 60 + 120
    y = (points[1] - 0.4 * points[0] ** 2) * 50 + 100
    return np.asarray(cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), np.float32)


def _hair_field(identity: Identity, points: FloatArray, strands: FloatArray) -> FloatArray:
    """A field that is positive where hair grows: above the hairline in front, behind the cheeks at the sides."""
    hair = identity.hair
    x, y, z = points
    line = hair.line + 0.38 * x**2 + 0.16 * (strands - 0.5)
    if hair.style == "side-parted":
        line = line + 0.22 * np.abs(x - hair.parting) - 0.12
    if hair.style == "fringe":
        line = line - 0.2 * x**2
    front = line - y
    drop = {"bob": 1.0, "long": 3.0, "curly": 0.5, "fringe": 0.2}.get(hair.style, -0.02)
    beside = 0.42 - z + 4 * np.maximum(np.abs(x) - 0.86, 0) + 0.1 * (strands - 0.5) + 0.15 * np.clip(-y, -0.3, 1)
    sides = np.minimum(np.minimum(drop - y, beside), np.abs(x) - 0.6 * np.clip(y, 0, 1))
    return np.asarray(np.maximum(front, sides))
