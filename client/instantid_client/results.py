"""What a caller gets back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instantid_client import files

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class FaceReport:
    """The face whose landmarks were used, in pixels of the photo as it was sent, upright.

    `box` (x0, y0, x1, y1); `landmarks` image-left eye, image-right eye, nose, image-left and image-right mouth
    corner; `photo_index` counts the photos of the person, and the pose photo after them; `notes` say what was done
    to the photo, as "decoded at half its sides"; `photos` has the same for each photo of the person.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float
    detection_size: int
    faces_seen: int
    photo_index: int
    photos: tuple["FaceReport", ...] = ()
    notes: tuple[str, ...] = ()

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
            notes=tuple(fields.get("notes", ())),
        )


@dataclass(frozen=True, slots=True, repr=False)
class GenerationResult:
    """Encoded pictures with the seed of each, and how they came about.

    `seconds` from the call to the answer; `timings` its parts in seconds: `prepare` (reading and checking), `call`
    (the call that was answered), `total`; `report` what the server says of each picture, empty from older servers.
    A notebook shows the first picture.
    """

    images: tuple[bytes, ...]
    seeds: tuple[int, ...]
    face: FaceReport
    request_id: str
    seconds: float
    report: tuple[Mapping[str, Any], ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        pictures = "1 picture" if len(self.images) == 1 else f"{len(self.images)} pictures"
        return f"GenerationResult({pictures}, seeds {self.seeds}, request {self.request_id}, {self.seconds:.2f} s)"

    def save(self, path: Path | str) -> tuple[Path, ...]:
        """Write the pictures: one to `path`, several to `name_0.png`, `name_1.png`, ...; returns where they are.

        Each file appears whole or not at all. Raises ValueError where the suffix names another format than the
        pictures have (`output_format` chooses it), and OSError where a file cannot be written.
        """
        paths = files.output_paths(Path(path), len(self.images))
        for target, image in zip(paths, self.images, strict=True):
            files.check_format(target, image)
        for target, image in zip(paths, self.images, strict=True):
            files.write_whole(target, image)
        return paths

    def pil(self, i: int = 0) -> "Image":
        """Picture i as a PIL image; needs Pillow (`pip install 'instantid-client[pillow]'`)."""
        import io

        from PIL import Image

        return Image.open(io.BytesIO(self.images[i]))

    def _repr_png_(self) -> bytes | None:
        return self._first("png")

    def _repr_jpeg_(self) -> bytes | None:
        return self._first("jpeg")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, bytes | str]:
        """The first picture under its own type: notebooks have no method for WebP."""
        kind = files.format_of(self.images[0])
        return {"text/plain": repr(self), **({f"image/{kind}": self.images[0]} if kind else {})}

    def _first(self, kind: str) -> bytes | None:
        return self.images[0] if files.format_of(self.images[0]) == kind else None


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """One server. `live`: the process answers; `ready`: it takes requests; `model_ready`: so does the ensemble.

    `error` says why nothing else is known, and is empty for a server that answers.
    """

    address: str
    live: bool = False
    ready: bool = False
    model_ready: bool = False
    triton_version: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """All servers of a client; `live`, `ready` and `model_ready` say whether at least one of them is."""

    servers: tuple[ServerHealth, ...]

    @property
    def live(self) -> bool:
        return any(server.live for server in self.servers)

    @property
    def ready(self) -> bool:
        return any(server.ready for server in self.servers)

    @property
    def model_ready(self) -> bool:
        return any(server.model_ready for server in self.servers)

    @property
    def triton_version(self) -> str:
        return next((server.triton_version for server in self.servers if server.triton_version), "")
