"""Things that a face detector must not take for faces: balls, cups, heads from behind, scrambled faces."""

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from miniature import ImageArray
from miniature.backgrounds import random_background, random_colour
from miniature.head import Pose, View
from miniature.painter import draw_person, random_appearance
from miniature.people import random_identity
from miniature.styles import to_bytes


def add_distractor(picture: ImageArray, rng: np.random.Generator) -> None:
    """Draw one thing without a face anywhere into the `[h, w, 3]` uint8 RGB picture (changed in place)."""
    kinds = (_ball, _ball, _cup, _head_from_behind, _scrambled_face, _patch)
    kinds[int(rng.integers(len(kinds)))](picture, rng)


def _size(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(5), np.log(110))))


def _colour(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    skin = random_identity(int(rng.integers(2**31))).skin
    return 255 * np.array(skin if rng.random() < 0.5 else random_colour(rng), np.float64)


def _ball(picture: ImageArray, rng: np.random.Generator) -> None:
    """A shaded ellipse with rings, texture or glints: balls, plates, buttons, coins, spoons."""
    size, flat = _size(rng), float(rng.uniform(0.45, 1.0))
    across, along = _oval_axes(picture, rng.uniform(0, picture.shape[1::-1]), (size, flat), rng)
    reach = np.hypot(across, along)
    light = rng.normal(0, 0.35, 2)
    shade = np.clip(rng.uniform(0.6, 1.0) + across * light[0] + along * light[1], 0.1, 1.2)[..., None]
    colour = _colour(rng) * shade
    for _ in range(int(rng.integers(0, 4))):
        inner = rng.uniform(0.2, 0.95)
        spot = np.hypot(across - rng.normal(0, 0.3), along - rng.normal(0, 0.3)) if rng.random() < 0.5 else reach
        ring = (spot < inner) & (spot > inner * rng.choice((0.0, 0.6, 0.9)))
        colour = np.where(ring[..., None], _colour(rng) * shade, colour)
    if rng.random() < 0.5:
        relief = random_background(str(rng.choice(("texture", "photo"))), picture.shape[1], picture.shape[0], rng)
        colour = colour * (0.5 + relief / 255.0)
    mask = np.clip((1 - reach) * size / rng.uniform(1, 4) + 0.5, 0, 1)[..., None]
    picture[:] = to_bytes(picture + mask * (colour - picture))


def _oval_axes(
    picture: ImageArray, middle: npt.NDArray[np.float64], shape: tuple[float, float], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Coordinates `[h, w]` in which a turned ellipse of `shape` (size, height over width) is the unit circle."""
    turn = rng.uniform(0, np.pi)
    x = (np.arange(picture.shape[1]) - middle[0])[None] / shape[0]
    y = (np.arange(picture.shape[0]) - middle[1])[:, None] / shape[0]
    return x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / shape[1]


def _cup(picture: ImageArray, rng: np.random.Generator) -> None:
    """A cup seen from above: saucer, body, handle, rim, drink, and the glints on them."""
    size = _size(rng) * 0.7
    x, y = rng.uniform(0, picture.shape[1::-1])
    body, inside, drink = _colour(rng), _colour(rng), _colour(rng)
    flat, deep = rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.4)

    def oval(dx: float, dy: float, wide: float, tall: float, colour: npt.NDArray, width: int = -1) -> None:
        centre = (int(x + dx * size), int(y + dy * size))
        axes = (max(1, int(wide * size)), max(1, int(tall * size)))
        cv2.ellipse(picture, centre, axes, 0, 0, 360, colour.tolist(), width, cv2.LINE_AA)

    if rng.random() < 0.6:
        oval(0, deep * 0.8, 1.7, 1.7 * flat, _colour(rng))
    oval(float(rng.choice((-1, 1))), deep * 0.5, 0.4, 0.35, body, max(1, int(size * 0.2)))
    for share in np.linspace(1, 0, 12):
        oval(0, deep * share, 1 - 0.3 * share**2, flat * (1 - 0.3 * share**2), body * (1 - 0.4 * share))
    oval(0, 0, 0.9, 0.9 * flat, inside)
    oval(0, 0.2 * flat, 0.68, 0.65 * flat, drink)
    for _ in range(int(rng.integers(0, 4))):
        dx, dy, wide, tall = rng.uniform((-0.7, -0.7, 0.03, 0.03), (0.7, 0.7, 0.3, 0.3))
        oval(dx, dy, wide, tall, np.full(3, rng.uniform(150, 255)))


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
    _paste(picture, np.vstack([np.hstack(mixed[row : row + 3]) for row in (0, 3, 6)]), rng)


def _patch(picture: ImageArray, rng: np.random.Generator) -> None:
    side = max(4, int(2 * _size(rng)))
    patch = random_background("photo", side, max(4, int(side * rng.uniform(0.5, 2))), rng)
    _paste(picture, np.rot90(patch, int(rng.integers(4))), rng)


def _paste(picture: ImageArray, patch: ImageArray, rng: np.random.Generator) -> None:
    height, width = (min(pair) for pair in zip(patch.shape[:2], picture.shape[:2], strict=True))
    y, x = int(rng.integers(picture.shape[0] - height + 1)), int(rng.integers(picture.shape[1] - width + 1))
    mask = np.full((height, width), 255, np.uint8)
    if rng.random() < 0.6:
        mask[:] = cv2.ellipse(mask * 0, (width // 2, height // 2), (width // 2, height // 2), 0, 0, 360, (255,), -1)
    share = (mask / 255.0)[..., None]
    area = picture[y : y + height, x : x + width]
    area[:] = (area + share * (patch[:height, :width].astype(np.float32) - area)).astype(np.uint8)
