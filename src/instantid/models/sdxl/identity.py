"""The person: face tokens for the UNet's cross attention and for IdentityNet, and the landmarks that place the face."""

from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instantid.models.parts import repeat
from instantid.models.sdxl.attention import FaceAttention, KeysValues
from instantid.models.sdxl.condition import Pass, Residuals
from instantid.models.sdxl.load import Networks
from instantid.models.sdxl.schedules import control_window
from instantid.models.sdxl.state import RequestTensors
from instantid.request import GenerationRequest

LANDMARKS: Final = "landmarks"
"""Role of the landmark picture in `request.pictures`."""


class IdentityPart(NamedTuple):
    """For every row: face tokens [rows, 16, d], IdentityNet's embedding of the landmark picture [rows, c, h, w],
    keys and values of the tokens for IdentityNet, and what the UNet's attention adds for the face."""

    tokens: Tensor
    landmarks: Tensor
    identitynet: KeysValues
    face: FaceAttention


class IdentityCondition:
    """The condition of one person (arXiv 2401.07519, section 3)."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._no_face = self.tokens(np.zeros(networks.embedding_size, np.float32))
        """The unconditional rows' tokens are those of zeros, not zeros."""

    def start(self, request: GenerationRequest, given: RequestTensors) -> IdentityPart:
        networks, images = self._networks, request.num_images_per_prompt
        face = self.tokens(given.embeddings[0])
        tokens = torch.cat([self._no_face, face]) if request.guidance else face
        rows = len(tokens) * images
        scale = torch.full((rows, 1, 1, 1), request.ip_adapter_scale, dtype=networks.dtype, device=networks.device)
        return IdentityPart(
            tokens=repeat(tokens, images),
            landmarks=self._embedded(given.pictures[request.pictures.index(LANDMARKS)]).expand(rows, -1, -1, -1),
            identitynet=repeat(networks.identitynet_face.project(tokens), images),
            face=FaceAttention(scale, repeat(networks.unet_face.project(tokens), images)),
        )

    def window(self, request: GenerationRequest, steps: int) -> tuple[float, ...]:
        keep = control_window(steps, request.control_guidance_start, request.control_guidance_end)
        return tuple(request.controlnet_conditioning_scale * kept for kept in keep)

    def attention(self, part: IdentityPart) -> dict[str, Any]:
        return {"face": part.face}

    def residuals(self, networks_pass: Pass, part: IdentityPart, scale: Tensor) -> Residuals:
        """IdentityNet's; its text is the face."""
        down, middle = self._networks.identitynet(
            networks_pass.latents,
            networks_pass.timesteps,
            encoder_hidden_states=part.tokens,
            controlnet_cond=part.landmarks,
            conditioning_scale=scale,
            added_cond_kwargs=networks_pass.added,
            cross_attention_kwargs={"context": part.identitynet},
            return_dict=False,
        )
        return Residuals(down, middle)

    @torch.inference_mode()
    def tokens(self, embedding: NDArray[np.float32]) -> Tensor:
        """Face tokens [1, 16, d] of a raw embedding [512]."""
        return self._networks.resampler(torch.from_numpy(embedding)[None].to(self._networks.device))

    def _embedded(self, picture: NDArray[np.uint8]) -> Tensor:
        """The landmark picture in [0, 1] through IdentityNet's first layers, which no step changes."""
        pixels = torch.from_numpy(picture).to(self._networks.device).permute(2, 0, 1)[None].float() / 255
        return self._networks.landmark_embedding(pixels.to(self._networks.dtype))
