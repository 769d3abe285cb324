"""What a condition of the networks is, such as a person or a ControlNet: one class that answers these calls."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from instantid.models.sdxl.state import RequestTensors
from instantid.request import GenerationRequest


class Residuals(NamedTuple):
    """What is added to the outputs of the UNet's down blocks and of its middle."""

    down: Sequence[Tensor]
    middle: Tensor


class Pass(NamedTuple):
    """One pass of the networks for all rows: latents in their dtype, timesteps, and SDXL's added conditions."""

    latents: Tensor
    timesteps: Tensor
    added: dict[str, Tensor]


class Condition(Protocol):
    """Acts through residuals of the UNet's blocks, in its attention, or both."""

    def start(self, request: GenerationRequest, given: RequestTensors) -> Any:
        """The part of a request: a tree of tensors with a row for each row of the request."""

    def window(self, request: GenerationRequest, steps: int) -> tuple[float, ...]:
        """For each step what the residuals are multiplied by; where it is 0 for all rows, none are asked for."""

    def attention(self, part: Any) -> dict[str, Any]:
        """Arguments for the UNet's attention."""

    def residuals(self, networks_pass: Pass, part: Any, scale: Tensor) -> Residuals:
        """Residuals of all rows, times `scale` [rows, 1, 1, 1]."""


def add(residuals: Sequence[Residuals]) -> Residuals | None:
    """The sum in this order; None of none."""
    if len(residuals) < 2:
        return residuals[0] if residuals else None
    down = [sum(tensors[1:], tensors[0]) for tensors in zip(*(r.down for r in residuals), strict=True)]
    return Residuals(down, sum((r.middle for r in residuals[1:]), residuals[0].middle))
