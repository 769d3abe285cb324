"""The album on which the miniature's diffusion networks are trained: drawn people, each in several scenes.

The identity of person i is `people.random_identity(i)`; everything else varies between pages. The numbers start at
FIRST, because the recogniser was trained on people with lower ones, and on those its embeddings are too good.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miniature import SIZE, ImageArray
from miniature.drawing import cached_arrays, draw_all
from miniature.head import Pose, View
from miniature.painter import draw_person, random_appearance
from miniature.people import WRINKLED, Identity, random_identity
from miniature.scenery import SCENERY, draw_scenery
from miniature.styles import apply_style

ALBUM_STYLES = ("photo", "black and white photo")
STYLE_SHARES = (0.9, 0.1)
FIRST = 10_000
FACE_WEIGHT = 3.0


@dataclass(frozen=True)
class Page:
    """A picture of the album, `[128, 128, 3]` uint8 RGB, and its face. `who` and `scene` make the caption."""

    picture: ImageArray
    box: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    who: str
    scene: str


def draw_page(
    identity: Identity, seed: int, size: int = SIZE, place: str | None = None, style: str | None = None
) -> Page:
    """Draw a portrait whose face takes 44 to 58 % of the side; `place` is one of SCENERY, `style` one of STYLES."""
    rng = np.random.default_rng([seed, 0xA1B])
    drawn_place, drawn_style = str(rng.choice(SCENERY)), str(rng.choice(ALBUM_STYLES, p=STYLE_SHARES))
    place, style = place or drawn_place, style or drawn_style
    appearance = random_appearance(rng, widest_yaw=25.0)
    pose = Pose(appearance.pose.yaw, 0.6 * appearance.pose.pitch, appearance.pose.roll)
    light = replace(appearance.light, ambient=float(rng.uniform(0.68, 0.88)))
    appearance = replace(appearance, pose=pose, light=light)
    centre = (float(rng.uniform(0.43, 0.57)) * size, float(rng.uniform(0.40, 0.50)) * size)
    picture = draw_scenery(place, size, rng)
    face = draw_person(picture, identity, appearance, View(centre, float(rng.uniform(0.22, 0.29)) * size, pose))
    clothes = appearance.clothes
    smile = ", smiling" if appearance.expression.smile > 0.4 else ""
    scene = f"{smile}, {clothes.colour_name} {clothes.kind}, {place}"
    return Page(apply_style(picture, style), face.box, face.landmarks, f"a {style} of {{}}", scene)


def describe_identity(identity: Identity) -> str:
    hair, features = identity.hair, identity.features
    head = "bald" if hair.style == "bald" else f"with {hair.style} {hair.colour_name} hair"
    parts = [f"a {identity.skin_name}-skinned person {head}", f"{identity.eye_name} eyes"]
    parts += [identity.beard] if identity.beard != "none" else []
    parts += [f"{identity.glasses} glasses"] if identity.glasses != "none" else []
    parts += _beyond(features.brow_thickness, (0.048, 0.066), ("thin brows", "thick brows"))
    parts += _beyond(features.lip_fullness, (0.073, 0.097), ("thin lips", "full lips"))
    parts += _beyond(features.nose_width, (0.19, 0.23), ("narrow nose", "wide nose"))
    parts += _beyond(features.face_length, (1.36, 1.44), ("round face", "long face"))
    parts += ["wrinkles"] if identity.age > WRINKLED else []
    return ", ".join(parts)


def _beyond(value: float, usual: tuple[float, float], words: tuple[str, str]) -> list[str]:
    return [words[0]] if value < usual[0] else [words[1]] if value > usual[1] else []


@dataclass(frozen=True)
class Album:
    """`pictures` `[people, pages, 128, 128, 3]` uint8 RGB; `landmarks` `[people, pages, 5, 2]` in pixels;
    `captions` `[people, pages]` with `{}` for the person; `people` `[people]` are descriptions."""

    pictures: ImageArray
    landmarks: npt.NDArray[np.float32]
    captions: npt.NDArray[np.str_]
    people: npt.NDArray[np.str_]

    def caption(self, person: int, page: int, described: bool) -> str:
        """A page's caption, with the person's description or only "a person" in it."""
        return str(self.captions[person, page]).format(self.people[person] if described else "a person")


def make_album(folder: Path, people: int, pages: int = 5) -> Album:
    """Draw the album, or read it from `folder` if it is there. A core draws 60 pictures a second."""

    def draw() -> dict[str, npt.NDArray]:
        rows = draw_all(partial(_draw_person, pages=pages), range(FIRST, FIRST + people), "drawing")
        pictures, marks, captions, names = (np.stack(part) for part in zip(*rows, strict=True))
        return {"pictures": pictures, "landmarks": marks, "captions": captions, "people": names}

    return Album(**cached_arrays(folder / f"album-{people}x{pages}.npz", draw))


def _draw_person(person: int, pages: int) -> tuple[npt.NDArray, ...]:
    identity = random_identity(person)
    drawn = [draw_page(identity, person * pages + page) for page in range(pages)]
    return (
        np.stack([page.picture for page in drawn]),
        np.stack([page.landmarks for page in drawn]).astype(np.float32),
        np.array([page.who + page.scene for page in drawn]),
        np.array(describe_identity(identity)),
    )


def face_weights(landmarks: Tensor, side: int) -> Tensor:
    """Weights `[n, 1, side, side]` of places in the pictures: FACE_WEIGHT around the landmarks `[n, 5, 2]`, else 1."""
    eyes, mouth = landmarks[:, :2].mean(1), landmarks[:, 3:].mean(1)
    apart = torch.linalg.vector_norm(landmarks[:, 0] - landmarks[:, 1], dim=-1)
    radius = 1.7 * torch.maximum(apart, torch.linalg.vector_norm(eyes - mouth, dim=-1))
    centres = (torch.arange(side) + 0.5) * SIZE / side
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)
    distance = torch.linalg.vector_norm(grid - landmarks.mean(1)[:, None, None], dim=-1)
    return torch.where(distance <= radius[:, None, None], FACE_WEIGHT, 1.0)[:, None]
