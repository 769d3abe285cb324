"""The album on which the miniature's diffusion networks are trained: drawn people, each in several scenes.

A person's identity comes from `people.random_identity`, everything else from the scene. Embeddings are the
recogniser's, of photos other than the ones to be painted: so that an identity is what photos of one person share.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from build_tools.miniature.faces import DATA, loaded
from build_tools.miniature.head import Pose, View
from build_tools.miniature.painter import Face, draw_person, random_appearance
from build_tools.miniature.people import Identity, random_identity
from build_tools.miniature.people_pictures import aligned_picture
from build_tools.miniature.recogniser import INPUT_MEAN, INPUT_STD, Recogniser
from build_tools.miniature.scenery import SCENERY, draw_scenery
from build_tools.miniature.styles import apply_style

ImageArray = npt.NDArray[np.uint8]
SIZE = 128
ALBUM_STYLES = ("photo", "black and white photo")
STYLE_SHARES = (0.85, 0.15)


@dataclass(frozen=True)
class Page:
    """One picture of the album, `[128, 128, 3]` uint8 RGB, and the face's box. `who` and `scene` make the caption."""

    picture: ImageArray
    box: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    who: str
    scene: str


def draw_page(
    identity: Identity, seed: int, size: int = SIZE, place: str | None = None, style: str | None = None
) -> Page:
    """A portrait with the face over 44 to 58 % of the side; `place` as in `SCENERY`, `style` as in `ALBUM_STYLES`."""
    rng = np.random.default_rng([seed, 0xA1B])
    drawn_place, drawn_style = str(rng.choice(SCENERY)), str(rng.choice(ALBUM_STYLES, p=STYLE_SHARES))
    place, style = place or drawn_place, style or drawn_style
    appearance = random_appearance(rng, widest_yaw=25.0)
    pose = Pose(appearance.pose.yaw, 0.6 * appearance.pose.pitch, appearance.pose.roll)
    light = replace(appearance.light, ambient=float(rng.uniform(0.55, 0.75)))
    appearance = replace(appearance, pose=pose, light=light)
    centre = (float(rng.uniform(0.43, 0.57)) * size, float(rng.uniform(0.40, 0.50)) * size)
    picture = draw_scenery(place, size, rng)
    face: Face = draw_person(picture, identity, appearance, View(centre, float(rng.uniform(0.22, 0.29)) * size, pose))
    clothes = appearance.clothes
    smile = ", smiling" if appearance.expression.smile > 0.4 else ""
    scene = f"{smile}, {clothes.colour_name} {clothes.kind}, {place}"
    return Page(apply_style(picture, style), face.box, face.landmarks, f"a {style} of {{}}", scene)


def describe_person(identity: Identity) -> str:
    hair = identity.hair
    head = "bald" if hair.style == "bald" else f"with {hair.style} {hair.colour_name} hair"
    parts = [f"a {identity.skin_name}-skinned person {head}"]
    parts += [identity.beard] if identity.beard != "none" else []
    parts += [f"{identity.glasses} glasses"] if identity.glasses != "none" else []
    return ", ".join(parts)


@dataclass(frozen=True)
class Album:
    """`pictures` `[people, pages, 128, 128, 3]` uint8 RGB; `landmarks` `[people, pages, 5, 2]` in pixels;
    `embeddings` `[people, photos, 512]` raw, float32; `captions` `[people, pages]` with a place `{}` for who it is;
    `people` names each person."""

    pictures: ImageArray
    landmarks: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]
    captions: npt.NDArray[np.str_]
    people: npt.NDArray[np.str_]


def make_album(folder: Path, people: int, pages: int, photos: int, workers: int) -> Album:
    """Drawn once and kept in `folder`; 50 pictures a second and core."""
    path = folder / f"album-{people}x{pages}+{photos}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        recogniser = loaded(Recogniser(), DATA / "recogniser.safetensors")
        with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as executor:
            rows = executor.map(partial(_draw_person, pages=pages, photos=photos), range(people), chunksize=8)
            drawn = [(*row[:-1], _embed(recogniser, row[-1])) for row in tqdm(rows, "drawing", people)]
        pictures, marks, captions, names, embeddings = (np.stack(part) for part in zip(*drawn, strict=True))
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, pictures=pictures, landmarks=marks, captions=captions, people=names, embeddings=embeddings)
        path.with_suffix(".part").replace(path)
    with np.load(path) as kept:
        return Album(**{name: kept[name] for name in kept.files})


def _draw_person(person: int, pages: int, photos: int) -> tuple[npt.NDArray, ...]:
    identity = random_identity(person)
    drawn = [draw_page(identity, person * pages + page) for page in range(pages)]
    return (
        np.stack([page.picture for page in drawn]),
        np.stack([page.landmarks for page in drawn]).astype(np.float32),
        np.array([page.who + page.scene for page in drawn]),
        np.array(describe_person(identity)),
        np.stack([aligned_picture(person, photo, jitter=0.8) for photo in range(photos)]),
    )


@torch.inference_mode()
def _embed(recogniser: Recogniser, faces: ImageArray) -> npt.NDArray[np.float32]:
    pixels = torch.from_numpy(faces).permute(0, 3, 1, 2).float()
    return np.asarray(recogniser((pixels - INPUT_MEAN) / INPUT_STD), np.float32)
