"""Loads one set of weights in the published layout: safetensors only, from local files only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from instantid.models.sdxl import attention
from instantid.models.sdxl.attention import Projections
from instantid.models.sdxl.checkpoint import Sdxl
from instantid.models.sdxl.kinds import refuse_infinite
from instantid.models.sdxl.network import load_network, log_seconds, read
from instantid.models.sdxl.resampler import Resampler
from instantid.models.sdxl.text import TextEncoder

ADAPTER = "adapter/ip-adapter.safetensors"


@dataclass(frozen=True, slots=True)
class Networks:
    """All networks of InstantID on one device; `scheduler_config` is the checkpoint's own, never changed."""

    device: torch.device
    dtype: torch.dtype
    unet: Any
    identitynet: Any
    landmark_embedding: nn.Module
    resampler: Resampler
    text: TextEncoder
    vae: Any
    scheduler_config: Mapping[str, Any]
    unet_text: Projections
    unet_face: Projections
    identitynet_face: Projections

    @property
    def embedding_size(self) -> int:
        return self.resampler.proj_in.in_features


def load_networks(weights: Path, sdxl: Sdxl, device: torch.device, dtype: torch.dtype) -> Networks:
    """Read `identitynet/` and `adapter/` of one set, beside an SDXL. Raises as `load_network`."""
    identitynet = load_network(ControlNetModel, weights / "identitynet", device, dtype)
    refuse_infinite(weights, "identitynet", dict(identitynet.named_parameters()), dtype)
    with log_seconds("adapter"):
        adapter = load_adapter(weights / ADAPTER, device, dtype)
    unet_layers, identity_layers = attention.install(sdxl.unet), attention.install(identitynet)
    landmark_embedding = identitynet.controlnet_cond_embedding
    identitynet.controlnet_cond_embedding = nn.Identity()
    return Networks(
        device=device,
        dtype=dtype,
        **sdxl._asdict(),
        identitynet=identitynet,
        landmark_embedding=landmark_embedding,
        resampler=Resampler(adapter["image_proj"]).to(device, dtype).eval(),
        unet_text=Projections.of(unet_layers),
        unet_face=adapter_projections(adapter["ip_adapter"], unet_layers),
        identitynet_face=Projections.of(identity_layers),
    )


def load_adapter(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """The two parts of the adapter file, `image_proj` (the resampler) and `ip_adapter` (keys and values)."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in read(path, device).items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"{path}: tensor {name} belongs to neither image_proj nor ip_adapter")
        parts[part][rest] = tensor.to(dtype)
    for part, tensors in parts.items():
        refuse_infinite(path, part, tensors, dtype)
    return parts


def adapter_projections(tensors: Mapping[str, Tensor], layers: Sequence[Any]) -> Projections:
    """The adapter's key and value layers: the i-th cross attention has the file's index 2 i + 1.

    Raises ValueError if names or shapes are not those of this UNet.
    """
    expected = {
        f"{2 * i + 1}.to_{kind}_ip.weight": getattr(layer, f"to_{kind}").weight.shape
        for i, layer in enumerate(layers)
        for kind in "kv"
    }
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ValueError(f"{ADAPTER}: ip_adapter.{wrong[0]} and {len(wrong) - 1} more do not fit this UNet")
    keys, values = ([_linear(tensors[f"{2 * i + 1}.to_{kind}_ip.weight"]) for i in range(len(layers))] for kind in "kv")
    return Projections(keys, values, [layer.heads for layer in layers])


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
