"""What belongs to one request while it is denoised."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instantid.errors import ServiceError
from instantid.models.sdxl.attention import FaceAttention, KeysValues
from instantid.models.sdxl.schedules import Schedule
from instantid.request import GenerationRequest


class Job(NamedTuple):
    """A request with its raw face embedding float32 [512] and landmark picture uint8 RGB [height, width, 3]."""

    request: GenerationRequest
    embedding: NDArray[np.float32]
    landmark_picture: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Rows:
    """What the networks are given besides latents and timestep, for every row; constant over a request's steps.

    With guidance the rows of one request are its unconditional pictures, then its conditional ones. `text`
    [rows, 77, d], `pooled` [rows, p], `time_ids` [rows, 6], `landmarks` [rows, c, h, w] (IdentityNet's embedding
    of the landmark picture), `face_tokens` [rows, 16, d].
    """

    text: Tensor
    pooled: Tensor
    time_ids: Tensor
    face_tokens: Tensor
    landmarks: Tensor
    unet: KeysValues
    identitynet: KeysValues
    face: FaceAttention

    @staticmethod
    def cat(parts: Sequence["Rows"]) -> "Rows":
        if len(parts) == 1:
            return parts[0]
        face = FaceAttention(
            torch.cat([part.face.scale for part in parts]), KeysValues.cat([part.face.face for part in parts])
        )
        return Rows(
            text=torch.cat([part.text for part in parts]),
            pooled=torch.cat([part.pooled for part in parts]),
            time_ids=torch.cat([part.time_ids for part in parts]),
            face_tokens=torch.cat([part.face_tokens for part in parts]),
            landmarks=torch.cat([part.landmarks for part in parts]),
            unet=KeysValues.cat([part.unet for part in parts]),
            identitynet=KeysValues.cat([part.identitynet for part in parts]),
            face=face,
        )


@dataclass(slots=True)
class State:
    """One request between two steps. `latents` float32 [pictures, 4, height / 8, width / 8]."""

    request: GenerationRequest
    schedule: Schedule
    window: tuple[float, ...]
    generators: tuple[torch.Generator, ...]
    latents: Tensor
    inputs: Rows
    index: int = 0
    decoded: int = 0
    failure: ServiceError | None = field(default=None)

    @property
    def size(self) -> tuple[int, int]:
        return self.request.height, self.request.width

    @property
    def rows(self) -> int:
        return len(self.latents) * (2 if self.request.guidance else 1)

    @property
    def steps_left(self) -> int:
        return len(self.schedule.timesteps) - self.index

    @property
    def pictures_left(self) -> int:
        return len(self.latents) - self.decoded

    @property
    def identity_scale(self) -> float:
        """What IdentityNet's residuals are multiplied by in the next step."""
        return self.request.controlnet_conditioning_scale * self.window[self.index]
