"""Fuses LoRA files into networks when they are loaded: changes are added in float32, and their sum is rounded once."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from instantid.models.sdxl.changes import Change
from instantid.models.sdxl.names import layers_by_name, plain, split

log = logging.getLogger(__name__)

MARKED_LOSS = 0.02
"""Share of the effect that rounding may take before it is warned of."""
PART = re.compile(
    r"(.+)[._](?:(?:lora|lora_linear_layer)[._](up|down|mid|A|B)|(alpha|dora_scale|lora_magnitude_vector"
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|diff|diff_b|w_norm|b_norm))(?:\.default)?(?:\.weight)?"
)
"""A layer's name and what a tensor is to it."""
SAME = {"A": "down", "B": "up", "w_norm": "diff", "b_norm": "diff_b"}
REFUSED = {
    r"[._]b?oft_": "OFT",
    r"\.on_input$|\.ia3_": "IA3",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"lora_(?:up|B)(?:\.default)?\.bias$": "a LoRA of biases",
    r"^bundle_emb|emb_params|^clip_[lg]$|string_to_param": "a textual inversion embedding",
    r"double_blocks|single_blocks|joint_blocks|single_transformer_blocks": "a LoRA for FLUX or Stable Diffusion 3",
    r"^lllite_|^control_": "a ControlNet",
    r"^first_stage_model\.|^conditioner\.": "a whole checkpoint (set INSTANTID_CHECKPOINT for one)",
}
"""Keys of files that cannot be fused, and what these are."""


@torch.no_grad()
def fuse(networks: Mapping[str, Any], loras: Sequence[tuple[Path, float]], dtype: torch.dtype) -> None:
    """Add each file, times its weight, to the networks "unet", "text_encoder" and "text_encoder_2".

    Changed weights get `dtype`; how much of the effect rounding took is logged. Raises FileNotFoundError or
    ValueError, naming the file and what is wrong with it.
    """
    changes: dict[tuple[nn.Module, str], list[Change]] = {}
    for path, weight in loras:
        for layer, parameter, change in _read(path, networks):
            changes.setdefault((layer, parameter), []).append(change._replace(weight=weight))
    lost = torch.tensor([_add(layer, name, parts, dtype) for (layer, name), parts in changes.items()]).sum(0)
    if not lost.isfinite().all():
        raise ValueError(f"{', '.join(str(path) for path, _ in loras)}: the sum does not fit {dtype}")
    share = float((lost[0] / lost[1].clamp(min=1e-30)).sqrt())
    level = logging.WARNING if share > MARKED_LOSS else logging.INFO
    log.log(level, "LoRA: %d weights changed, %.2g %% of the effect lost to %s", len(changes), 100 * share, dtype)


def _add(layer: nn.Module, parameter: str, changes: Sequence[Change], dtype: torch.dtype) -> tuple[float, float]:
    """Squared norms of what rounding took from the change, and of the change."""
    pristine = layer.get_parameter(parameter)
    change = torch.stack([part.of(pristine) for part in changes]).sum(0)
    fused = (pristine.float() + change).to(dtype)
    setattr(layer, parameter, nn.Parameter(fused, requires_grad=False))
    lost = fused.float() - pristine.to(dtype).float() - change
    return float(lost.square().sum()), float(change.square().sum())


def _read(path: Path, networks: Mapping[str, Any]) -> Iterator[tuple[nn.Module, str, Change]]:
    """The layers that one file changes, which of their tensors, and how."""
    tensors, facts = _open(path)
    found = _by_layer(path, tensors)
    layers = layers_by_name(networks)
    places = {name: (network, plain(rest)) for name in found for network, rest in [split(name)]}
    if strange := [name for name in found if places[name] not in layers]:
        raise ValueError(f"{path}: {strange[0]} and {len(strange) - 1} more are no layers of this checkpoint")
    if len({layers[place] for place in places.values()}) < len(places):
        raise ValueError(f"{path}: names some layers twice, as diffusers and as the original layout do")
    for name, parts in found.items():
        layer, alpha = layers[places[name]], _alpha(parts, facts, name)
        bias = {"diff": parts.pop("diff_b")} if "diff_b" in parts else {}
        for parameter, own in (("weight", parts), ("bias", bias)):
            change = Change(own, alpha, bool(facts.get(f"{places[name][0]}.use_rslora")))
            if own and not _fits(change, getattr(layer, parameter, None)):
                raise ValueError(f"{path}: {name} ({', '.join(sorted(own))}) does not fit the checkpoint's {parameter}")
            if own:
                yield layer, parameter, change


def _fits(change: Change, weight: Tensor | None) -> bool:
    if weight is None:
        return False
    try:
        change.of(torch.empty_like(weight, device="meta"))
    except (KeyError, ValueError, RuntimeError, IndexError):
        return False
    return True


def _by_layer(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Each layer's tensors. Raises ValueError for a file with any other, or none."""
    for pattern, kind in REFUSED.items():
        if any(re.search(pattern, name) for name in tensors):
            raise ValueError(f"{path}: {kind}, which cannot be fused")
    matches = {name: PART.fullmatch(name) for name in tensors}
    if strange := [name for name, match in matches.items() if match is None]:
        raise ValueError(f"{path}: not a LoRA for SDXL: {strange[0]} and {len(strange) - 1} more are of no known form")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, match in matches.items():
        if match:
            part = match[2] or match[3]
            layers.setdefault(match[1], {})[SAME.get(part, part)] = tensors[name]
    if not layers:
        raise ValueError(f"{path}: not a LoRA for SDXL: it is empty")
    return layers


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, and how they were trained: diffusers writes it into the file, peft beside it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such LoRA file")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
    beside = path.with_name("adapter_config.json")
    if beside.exists() and any(name.startswith("base_model.") for name in tensors):
        facts |= {f"{split(next(iter(tensors)))[0]}.{k}": v for k, v in json.loads(beside.read_text()).items()}
    return tensors, facts


def _alpha(parts: dict[str, Tensor], facts: Mapping[str, Any], name: str) -> float | None:
    """A layer's own alpha, else peft's: the first pattern that its name ends with, else the network's."""
    if "alpha" in parts and parts["alpha"].numel() == 1:
        return float(parts.pop("alpha"))
    network, layer = split(name)
    patterns: Mapping[str, float] = facts.get(f"{network}.alpha_pattern") or {}
    found = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer))
    return next(found, facts.get(f"{network}.lora_alpha"))
