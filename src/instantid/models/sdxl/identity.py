"""The person: face tokens for the UNet's cross attention and for IdentityNet, and the landmarks that place the face."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instantid.models.parts import repeat
from instantid.models.sdxl.attention import FaceAttention, KeysValues
from instantid.models.sdxl.load import Networks
from instantid.request import GenerationRequest


class IdentityPart(NamedTuple):
    """For every row: face tokens [rows, 16, d], IdentityNet's embedding of the landmark picture [rows, c, h, w],
    keys and values of the tokens for IdentityNet, and what the UNet's attention adds for the face."""

    tokens: Tensor
    landmarks: Tensor
    identitynet: KeysValues
    face: FaceAttention


class Identity:
    """Makes the part of a request, and IdentityNet's residuals in a step (arXiv 2401.07519, section 3)."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._no_face = self.tokens(np.zeros(networks.embedding_size, np.float32))
        """The unconditional rows' tokens are those of zeros, not zeros."""

    def start(
        self, request: GenerationRequest, embedding: NDArray[np.float32], landmarks: NDArray[np.uint8]
    ) -> IdentityPart:
        """`embedding` raw [512]; `landmarks` the landmark picture [height, width, 3], RGB."""
        networks, images = self._networks, request.num_images_per_prompt
        face = self.tokens(embedding)
        tokens = torch.cat([self._no_face, face]) if request.guidance else face
        rows = len(tokens) * images
        scale = torch.full((rows, 1, 1, 1), request.ip_adapter_scale, dtype=networks.dtype, device=networks.device)
        return IdentityPart(
            tokens=repeat(tokens, images),
            landmarks=self._embedded(landmarks).expand(rows, -1, -1, -1),
            identitynet=repeat(networks.identitynet_face.project(tokens), images),
            face=FaceAttention(scale, repeat(networks.unet_face.project(tokens), images)),
        )

    def residuals(
        self, latents: Tensor, timesteps: Tensor, added: dict[str, Tensor], part: IdentityPart, scale: Tensor
    ) -> dict[str, Any]:
        """What IdentityNet adds to the UNet's blocks; its text is the face. Arguments as the UNet takes them."""
        down, middle = self._networks.identitynet(
            latents,
            timesteps,
            encoder_hidden_states=part.tokens,
            controlnet_cond=part.landmarks,
            conditioning_scale=scale,
            added_cond_kwargs=added,
            cross_attention_kwargs={"context": part.identitynet},
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    @torch.inference_mode()
    def tokens(self, embedding: NDArray[np.float32]) -> Tensor:
        """Face tokens [1, 16, d] of a raw embedding [512]."""
        tokens: Tensor = self._networks.resampler(torch.from_numpy(embedding)[None].to(self._networks.device))
        return tokens

    def _embedded(self, picture: NDArray[np.uint8]) -> Tensor:
        """The landmark picture in [0, 1] through IdentityNet's first layers, which no step changes."""
        pixels = torch.from_numpy(picture).to(self._networks.device).permute(2, 0, 1)[None].float() / 255
        embedded: Tensor = self._networks.landmark_embedding(pixels.to(self._networks.dtype))
        return embedded
