"""What a face detector takes for a face and should not: balls, cups, heads from behind, scrambled faces."""

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from build_tools.miniature.backgrounds import random_background, random_colour
from build_tools.miniature.head import Pose, View
from build_tools.miniature.painter import draw_person, random_appearance
from build_tools.miniature.people import random_identity

ImageArray = npt.NDArray[np.uint8]


def add_distractor(picture: ImageArray, rng: np.random.Generator) -> None:
    """Draw one faceless thing somewhere into the `[h, w, 3]` uint8 RGB picture (changed in place)."""
    kinds = (_ball, _ball, _head_from_behind, _scrambled_face, _patch)
    kinds[int(rng.integers(len(kinds)))](picture, rng)


def _size(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(5), np.log(110))))


def _colour(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    skin = random_identity(int(rng.integers(2**31))).skin
    return 255 * np.array(skin if rng.random() < 0.5 else random_colour(rng), np.float64)


def _ball(picture: ImageArray, rng: np.random.Generator) -> None:
    """A shaded ellipse, often with rings or spots: balls, cups and plates, buttons, wheels."""
    height, width = picture.shape[:2]
    size, middle = _size(rng), rng.uniform(0, (width, height))
    flat, turn = rng.uniform(0.45, 1.0), rng.uniform(0, np.pi)
    x = (np.arange(width) - middle[0])[None] / size
    y = (np.arange(height) - middle[1])[:, None] / size
    across, along = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / flat
    reach = np.hypot(across, along)
    light = rng.normal(0, 0.35, 2)
    shade = np.clip(rng.uniform(0.6, 1.0) + across * light[0] + along * light[1], 0.1, 1.2)[..., None]
    colour = _colour(rng) * shade
    for _ in range(int(rng.integers(0, 4))):
        inner = rng.uniform(0.2, 0.95)
        spot = np.hypot(across - rng.normal(0, 0.3) * (rng.random() < 0.6), along) if rng.random() < 0.5 else reach
        ring = (spot < inner) & (spot > inner * rng.choice((0.0, 0.6, 0.9)))
        colour = np.where(ring[..., None], _colour(rng) * shade, colour)
    mask = np.clip((1 - reach) * size / rng.uniform(1, 4) + 0.5, 0, 1)[..., None]
    picture[:] = np.clip(picture + mask * (colour - picture), 0, 255).astype(np.uint8)


def _head_from_behind(picture: ImageArray, rng: np.random.Generator) -> None:
    identity = replace(random_identity(int(rng.integers(2**31))), glasses="none")
    pose = Pose(float(rng.uniform(150, 210)), float(rng.uniform(-15, 15)), float(rng.normal(0, 8)))
    x, y = rng.uniform(0, picture.shape[1::-1])
    draw_person(picture, identity, random_appearance(rng), View((x, y), _size(rng), pose))


def _scrambled_face(picture: ImageArray, rng: np.random.Generator) -> None:
    """A drawn face cut into nine tiles that change places and turn."""
    tile = max(2, int(_size(rng) / 1.5))
    face = random_background("plain", 3 * tile, 3 * tile, rng)
    identity = random_identity(int(rng.integers(2**31)))
    draw_person(face, identity, random_appearance(rng), View((1.5 * tile, 1.4 * tile), 1.2 * tile, Pose()))
    tiles = [face[r : r + tile, c : c + tile] for r in range(0, 3 * tile, tile) for c in range(0, 3 * tile, tile)]
    mixed = [np.rot90(tiles[i], int(rng.integers(4))) for i in rng.permutation(9)]
    _lay(picture, np.vstack([np.hstack(mixed[row : row + 3]) for row in (0, 3, 6)]), rng)


def _patch(picture: ImageArray, rng: np.random.Generator) -> None:
    side = max(4, int(2 * _size(rng)))
    patch = random_background("photo", side, max(4, int(side * rng.uniform(0.5, 2))), rng)
    _lay(picture, np.rot90(patch, int(rng.integers(4))), rng)


def _lay(picture: ImageArray, patch: ImageArray, rng: np.random.Generator) -> None:
    height, width = (min(pair) for pair in zip(patch.shape[:2], picture.shape[:2], strict=True))
    y, x = int(rng.integers(picture.shape[0] - height + 1)), int(rng.integers(picture.shape[1] - width + 1))
    mask = np.full((height, width), 255, np.uint8)
    if rng.random() < 0.6:
        mask[:] = cv2.ellipse(
            mask * 0, (width // 2, height // 2), (width // 2, height // 2), 0, 0, 360, (255,), -1
        )
    share = (mask / 255.0)[..., None]
    area = picture[y : y + height, x : x + width]
    area[:] = (area + share * (patch[:height, :width].astype(np.float32) - area)).astype(np.uint8)
