"""Fuses LoRA files (arXiv 2106.09685) into networks when they are loaded; requests then cost nothing more.

diffusers knows the names that trainers give: kohya's, peft's and its own. `weight * alpha / rank * up @ down` is added
to the pristine weights in float32, and the sum is rounded once, to the type that serves.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

log = logging.getLogger(__name__)

MARKED_LOSS = 0.02
"""Share of the effect that rounding may take before it is warned of."""


class LowRank(NamedTuple):
    """A change of one layer, `scale * up @ down`: `up` [out, rank, ...], `down` [rank, in, ...]."""

    up: Tensor
    down: Tensor
    scale: float

    def fits(self, layer: nn.Module | None) -> bool:
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            return False
        shape = (layer.weight.shape[0], self.down.shape[0], layer.weight[0].numel())
        return (*self.up.flatten(1).shape, self.down[0].numel()) == shape

    def of(self, weight: Tensor) -> Tensor:
        """Float32, with the shape and on the device of `weight`."""
        up, down = (factor.to(weight.device, torch.float32).flatten(1) for factor in (self.up, self.down))
        return (self.scale * up @ down).view(weight.shape)


@torch.no_grad()
def fuse(networks: Mapping[str, Any], loras: Sequence[tuple[Path, float]], dtype: torch.dtype) -> None:
    """Add each file, times its weight, to the networks "unet", "text_encoder" and "text_encoder_2".

    Changed weights get `dtype`; how much of the effect rounding took is logged. Raises FileNotFoundError or
    ValueError, naming the file and what is wrong with it.
    """
    changes: dict[nn.Module, list[LowRank]] = {}
    for path, weight in loras:
        for layer, change in _read(path, networks):
            changes.setdefault(layer, []).append(change._replace(scale=change.scale * weight))
    lost = torch.tensor([_add(layer, parts, dtype) for layer, parts in changes.items()]).sum(0)
    if not lost.isfinite().all():
        raise ValueError(f"{', '.join(str(path) for path, _ in loras)}: the sum does not fit {dtype}")
    share = float((lost[0] / lost[1].clamp(min=1e-30)).sqrt())
    level = logging.WARNING if share > MARKED_LOSS else logging.INFO
    log.log(level, "LoRA: %d layers changed, %.2g %% of the effect lost to %s", len(changes), 100 * share, dtype)


def _add(layer: Any, changes: Sequence[LowRank], dtype: torch.dtype) -> tuple[float, float]:
    """Squared norms of what rounding took from the change, and of the change."""
    pristine = layer.weight
    change = torch.stack([part.of(pristine) for part in changes]).sum(0)
    fused = (pristine.float() + change).to(dtype)
    layer.weight = nn.Parameter(fused, requires_grad=False)
    lost = fused.float() - pristine.to(dtype).float() - change
    return float(lost.square().sum()), float(change.square().sum())


def _read(path: Path, networks: Mapping[str, Any]) -> Iterator[tuple[nn.Module, LowRank]]:
    """The layers that one file changes."""
    tensors, facts = _open(path)
    try:
        named, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(tensors, unet_config=networks["unet"].config)
        parts = {part: _of(part, named | (alphas or {}), network) for part, network in networks.items()}
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path}: not a LoRA for SDXL: {error}") from None
    if not named or sum(map(len, parts.values())) != len(named) + len(alphas or {}):
        raise ValueError(f"{path}: not a LoRA for SDXL: not all of its tensors are for {', '.join(networks)}")
    for part, own in parts.items():
        layers = dict(networks[part].named_modules())
        for name in sorted({name.rpartition(".lora_")[0] for name, value in own.items() if isinstance(value, Tensor)}):
            change = _change(own, name, _alpha(facts, part, name))
            if change is None or not change.fits(layers.get(name)):
                raise ValueError(f"{path}: {part}.{name} is no LoRA of a layer of this checkpoint")
            yield layers[name], change
        if own:
            raise ValueError(f"{path}: {part}.{next(iter(own))} is of a kind that cannot be fused")


def _change(own: dict[str, Any], layer: str, alpha: float | None) -> LowRank | None:
    """Takes one layer's factors out of `own`; without an alpha anywhere they are as they are used."""
    down, up = (own.pop(f"{layer}.lora_{kind}.weight", None) for kind in "AB")
    alpha = own.pop(f"{layer}.alpha", alpha)
    return None if up is None or down is None else LowRank(up, down, 1.0 if alpha is None else alpha / len(down))


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, and what diffusers writes beside them about how they were trained."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such LoRA file")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
    if any("dora_scale" in name for name in tensors) or any(facts[name] for name in facts if name.endswith("_rslora")):
        raise ValueError(f"{path}: DoRA and rank-stabilised LoRA cannot be fused")
    return tensors, facts


def _of(part: str, named: Mapping[str, Any], network: Any) -> dict[str, Any]:
    """One network's tensors by peft's names, and alphas by their layers'."""
    own = {name.removeprefix(f"{part}."): value for name, value in named.items() if name.startswith(f"{part}.")}
    if not own or part == "unet":
        renamed = convert_unet_state_dict_to_peft(own)
    else:
        renamed = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
    prefix = "" if hasattr(network, "text_model") else "text_model."
    names = {name: name.removeprefix(prefix).replace(".lora_A.weight.alpha", ".alpha") for name in renamed}
    return {names[name]: value for name, value in renamed.items()}


def _alpha(facts: Mapping[str, Any], part: str, layer: str) -> float | None:
    """peft's alpha of a layer: the first pattern that its name ends with, else the network's."""
    patterns: Mapping[str, float] = facts.get(f"{part}.alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer))
    alpha: float | None = next(own, facts.get(f"{part}.lora_alpha"))
    return alpha
