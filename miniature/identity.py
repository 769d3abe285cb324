"""The miniature's frozen base with IdentityNet and adapter, as InstantID is trained (arXiv 2401.07519)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instantid.models.sdxl import attention
from instantid.models.sdxl.attention import FaceAttention, Projections
from instantid.models.sdxl.resampler import Resampler
from miniature.latents import time_ids
from miniature.networks import make_identitynet, resampler_shapes
from miniature.trained import SIZES, load_base


class Adapter(nn.Module):
    """The contents of `ip-adapter.bin`: the resampler, and a key and a value layer for each cross attention."""

    def __init__(self, layers: list[Any], scale: float) -> None:
        super().__init__()
        self.image_proj = Resampler(_untrained_resampler(scale))
        self.keys = nn.ModuleList(_copied(layer.to_k) for layer in layers)
        self.values = nn.ModuleList(_copied(layer.to_v) for layer in layers)
        self.heads = [layer.heads for layer in layers]

    def published(self) -> dict[str, dict[str, Tensor]]:
        """The tensors as `ip-adapter.bin` holds them."""
        pairs = zip(self.keys, self.values, strict=True)
        return {
            "image_proj": self.image_proj.state_dict(),
            "ip_adapter": {
                f"{2 * i + 1}.to_{kind}_ip.weight": layer.weight.detach()
                for i, pair in enumerate(pairs)
                for kind, layer in zip("kv", pair, strict=True)
            },
        }


def _untrained_resampler(scale: float) -> dict[str, Tensor]:
    """Identity norms and random matrices; `scale` is the standard deviation of the numbers of raw embeddings."""
    tensors = {}
    for name, shape in resampler_shapes(SIZES).items():
        if len(shape) == 1:
            tensors[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        else:
            tensors[name] = torch.randn(shape) * shape[-1] ** -0.5
    return tensors | {"proj_in.weight": tensors["proj_in.weight"] / scale}


def _copied(layer: Any) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features, bias=False)
    made.load_state_dict(layer.state_dict())
    return made


class InstantID:
    """Base, IdentityNet and adapter, joined as in the serving code.

    The base is the one whose checkpoint is in `work`, or else the one that ships. `scale` is the standard deviation of
    the numbers of raw embeddings.
    """

    def __init__(self, work: Path, scale: float, device: str) -> None:
        self.device = device
        self.unet, self.encoders = load_base(work / "base.pt")
        self.identitynet = make_identitynet(SIZES).to(device)
        _copy_encoder(self.identitynet, self.unet)
        for module in (self.unet, *self.encoders):
            module.to(device).requires_grad_(False)
        self.layers = attention.install(self.unet)
        self.identity_layers = attention.install(self.identitynet)
        self.adapter = Adapter(self.layers, scale).to(device)

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: tuple[Tensor, Tensor],
        faces: tuple[Tensor, Tensor],
        landmarks: Tensor,
        scales: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Predict velocities. `faces` are the embeddings for adapter and IdentityNet, `scales` `[n, 1, 1, 1]` are
        `ip_adapter_scale` and `controlnet_conditioning_scale`."""
        tokens, pooled = text
        added = {"text_embeds": pooled, "time_ids": time_ids(len(latents), self.device)}
        face_tokens, identity_tokens = (self.adapter.image_proj(face) for face in faces)
        down, middle = self.identitynet(
            latents,
            timesteps,
            identity_tokens,
            controlnet_cond=landmarks,
            added_cond_kwargs=added,
            cross_attention_kwargs={"context": Projections.of(self.identity_layers).project(identity_tokens)},
            return_dict=False,
        )
        adapter = self.adapter
        face = Projections(list(adapter.keys), list(adapter.values), adapter.heads).project(face_tokens)
        predicted: Tensor = self.unet(
            latents,
            timesteps,
            tokens,
            added_cond_kwargs=added,
            cross_attention_kwargs={
                "context": Projections.of(self.layers).project(tokens),
                "face": FaceAttention(scales[0], face),
            },
            down_block_additional_residuals=[scales[1] * each for each in down],
            mid_block_additional_residual=scales[1] * middle,
        ).sample
        return predicted


def _copy_encoder(identitynet: Any, unet: Any) -> None:
    """Copy the UNet's encoder into IdentityNet, whose output convolutions start at zero."""
    for part in ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block"):
        getattr(identitynet, part).load_state_dict(getattr(unet, part).state_dict())
