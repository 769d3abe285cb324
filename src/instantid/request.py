"""The resolved request: built once at the edge, checked there, carried as JSON between the models."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from instantid import contract


@dataclass(frozen=True, slots=True)
class PhotoSize:
    """Sizes in pixels of one photo: as sent (EXIF orientation applied) and as it lies in the canvas."""

    width: int
    height: int
    resized_width: int
    resized_height: int


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request with every default filled in.

    `deadline` is an absolute time of `time.monotonic()` in seconds, or None. `photos` lists the canvas's
    photos: those of the person, and the pose photo last where `has_pose_photo`. Picture i has `seed + i`.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 1024
    height: int = 1024
    num_inference_steps: int = 30
    guidance_scale: float = 5.0
    ip_adapter_scale: float = 0.8
    controlnet_conditioning_scale: float = 0.8
    control_guidance_start: float = 0.0
    control_guidance_end: float = 1.0
    scheduler: str = "euler"
    num_images_per_prompt: int = 1
    seed: int = 0
    output_format: str = "png"
    output_quality: int = 95
    pictures: tuple[str, ...] = ("landmarks",)
    photos: tuple[PhotoSize, ...] = ()
    has_pose_photo: bool = False
    request_id: str = ""
    tenant: str = contract.DEFAULT_TENANT
    priority_level: int = contract.DEFAULT_PRIORITY_LEVEL
    deadline: float | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.seed + i for i in range(self.num_images_per_prompt))

    @property
    def guidance(self) -> bool:
        """Whether unconditional rows are needed: only above 1, where they change the result."""
        return self.guidance_scale > 1.0

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "GenerationRequest":
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "photos": tuple(PhotoSize(**photo) for photo in fields["photos"])})

    def public(self, seed: int) -> dict[str, Any]:
        """The parameters that reproduce the picture of `seed`, by contract name; no photo, no embedding."""
        private = {"photos", "has_pose_photo", "request_id", "tenant", "priority_level", "deadline"}
        fields = asdict(replace(self, seed=seed, num_images_per_prompt=1))
        return {name: value for name, value in fields.items() if name not in private}
