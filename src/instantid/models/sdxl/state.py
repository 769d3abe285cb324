"""What belongs to one request while it is denoised; nothing of it lives anywhere else."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instantid.errors import ServiceError
from instantid.models.sdxl.schedules import Schedule
from instantid.models.sdxl.text import TextPart
from instantid.request import GenerationRequest


class RequestTensors(NamedTuple):
    """What comes beside a request: raw face embeddings float32 [persons, 512], and its pictures uint8 RGB
    [k, height, width, 3], whose roles are named in `request.pictures`."""

    embeddings: NDArray[np.float32]
    pictures: NDArray[np.uint8]


class Conditions(NamedTuple):
    """What the networks are given beside latents and timestep, for every row; constant over a request's steps.

    `parts` has one tree of tensors for each condition of the model, in its order. With guidance the rows of one request
    are its unconditional pictures, then its conditional ones.
    """

    text: TextPart
    parts: tuple[Any, ...]


class StepInputs(NamedTuple):
    """A step of a batch: scaled `latents` [rows, 4, h, w], `timesteps` float32 [rows], the conditions, and for each of
    them what its residuals are multiplied by, [rows, 1, 1, 1], or None where it acts on no row."""

    latents: Tensor
    timesteps: Tensor
    conditions: Conditions
    scales: tuple[Tensor | None, ...]

    @property
    def key(self) -> Hashable:
        acting = tuple(scale is not None for scale in self.scales)
        return tuple(self.latents.shape), self.conditions.text.tokens.shape[1], acting

    @property
    def constant(self) -> Conditions:
        return self.conditions

    @property
    def changing(self) -> tuple[Any, ...]:
        return self.latents, self.timesteps, self.scales


@dataclass(slots=True, eq=False, weakref_slot=True)
class State:
    """One request between two units of work.

    `latents` float32 [pictures, 4, height / 8, width / 8]; `windows` has for each condition and step what its residuals
    are multiplied by, and so has `scales` on the device; `pictures` fills as they are decoded, HWC RGB uint8; `facts`
    go into the report of each.
    """

    request: GenerationRequest
    schedule: Schedule
    windows: tuple[tuple[float, ...], ...]
    timesteps: Tensor
    scales: tuple[Tensor, ...]
    generators: tuple[torch.Generator, ...]
    latents: Tensor
    conditions: Conditions
    facts: Mapping[str, Any]
    index: int = 0
    pictures: list[Tensor] = field(default_factory=list)
    failure: ServiceError | None = None

    @property
    def rows(self) -> int:
        return len(self.conditions.text.pooled)
