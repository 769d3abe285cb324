"""Latents to pictures: the phase `decode`, one picture a unit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from instantid.engine import Phase
from instantid.models.sdxl.state import State
from instantid.models.unit import Check, to_host
from instantid.request import GenerationRequest


class Decode:
    """The phase `decode`."""

    kind = "decode"
    batched = False

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def plan(self, request: GenerationRequest, rows: int) -> Phase:
        return Phase(self.kind, 1, request.num_images_per_prompt)

    def work(self, states: Sequence[State]) -> Check:
        """Append the next picture of each state whose steps are done."""
        for state in states:
            state.pictures.append(to_host(self.picture(state.latents[len(state.pictures)])))
        return lambda: None

    def picture(self, latents: Tensor) -> Tensor:
        """Latents [4, h, w] to a picture HWC RGB uint8 on the same device, decoded by itself."""
        vae = self._vae
        scaled = latents[None].to(vae.dtype) / vae.config.scaling_factor
        return to_uint8(vae.decode(scaled, return_dict=False)[0][0])


def to_uint8(picture: Tensor) -> Tensor:
    """CHW in [-1, 1] to HWC uint8, as diffusers' `VaeImageProcessor` rounds."""
    unit = (picture.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    return (unit * 255).round().to(torch.uint8).contiguous()
