"""What a caller gets back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class FaceReport:
    """The face whose landmarks were used, in pixels of the photo as it was sent, upright.

    `box` (x0, y0, x1, y1); `landmarks` image-left eye, image-right eye, nose, image-left and image-right mouth
    corner; `photo_index` counts the photos of the person, and the pose photo after them; `photos` has the same for
    each photo of the person.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float
    detection_size: int
    faces_seen: int
    photo_index: int
    photos: tuple["FaceReport", ...] = ()

    @classmethod
    def from_json(cls, text: bytes) -> "FaceReport":
        return cls._from_fields(json.loads(text))

    @classmethod
    def _from_fields(cls, fields: Mapping[str, Any]) -> "FaceReport":
        x0, y0, x1, y1 = fields["box"]
        return cls(
            box=(x0, y0, x1, y1),
            landmarks=tuple((x, y) for x, y in fields["landmarks"]),
            score=fields["score"],
            detection_size=fields["detection_size"],
            faces_seen=fields["faces_seen"],
            photo_index=fields["photo_index"],
            photos=tuple(cls._from_fields(photo) for photo in fields.get("photos", ())),
        )


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """Encoded pictures with the seed of each, the face report, and the seconds that the call took."""

    images: tuple[bytes, ...]
    seeds: tuple[int, ...]
    face: FaceReport
    request_id: str
    seconds: float

    def save(self, path: Path | str) -> tuple[Path, ...]:
        """Write the pictures: one to `path`, several to `name_0.png`, `name_1.png`, ...; returns where they are.

        Each file appears whole or not at all.
        """
        path = Path(path)
        paths = [path] if len(self.images) == 1 else [numbered(path, i) for i in range(len(self.images))]
        for target, image in zip(paths, self.images, strict=True):
            partial = target.with_name(f".{target.name}.partial")
            partial.write_bytes(image)
            partial.replace(target)
        return tuple(paths)


def numbered(path: Path, i: int) -> Path:
    return path.with_name(f"{path.stem}_{i}{path.suffix}")


@dataclass(frozen=True, slots=True)
class Health:
    """`live`: the process answers; `ready`: it takes requests; `model_ready`: so does the whole ensemble."""

    live: bool
    ready: bool
    model_ready: bool
    triton_version: str
