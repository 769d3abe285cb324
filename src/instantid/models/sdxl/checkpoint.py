"""Reads the SDXL part of a set of weights: a diffusers folder, or one file in the original layout.

Community checkpoints come as a single safetensors file with the names of Stability AI's `generative-models`; diffusers'
own single-file loading renames them. Such a file has no configuration: that, and the tokenizers, are the set's own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from instantid.models.sdxl.lora import fuse
from instantid.models.sdxl.network import empty, existing, load_network, logged, read, variant
from instantid.models.sdxl.text import TextEncoder

TEXT_ENCODERS: Mapping[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
SINGLE_FILE_PARTS = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.",
    "text_encoder_2": "conditioner.embedders.1.",
}
"""Where each network lies in a file of the original layout."""


@dataclass(frozen=True, slots=True)
class Sdxl:
    """SDXL's networks on one device; `scheduler_config` is the checkpoint's own."""

    unet: Any
    vae: Any
    text: TextEncoder
    scheduler_config: Mapping[str, Any]


def load_sdxl(
    base: Path,
    checkpoint: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
    loras: Sequence[tuple[Path, float]] = (),
) -> Sdxl:
    """Read `checkpoint`, a diffusers folder or a single safetensors file; None: `base`, the set's own folder.

    `vae_dtype` is never float16, in which the stock SDXL VAE overflows. LoRA files, with their weights, are fused into
    the other networks. Raises FileNotFoundError or ValueError, naming file and tensor.
    """
    folder = checkpoint or base
    if existing(folder).is_file():
        with logged(folder.name):
            networks, said = _read_single_file(base, folder)
        folder = base
    else:
        networks, said = _read_folder(folder, device, None if loras else dtype, vae_dtype), {}
    vae = _ready(networks.pop("vae"), device, vae_dtype)
    if loras:
        with logged("LoRA files"):
            fuse({name: network.to(device) for name, network in networks.items()}, loras, dtype)
    unet, *encoders = (_ready(networks[name], device, dtype) for name in ("unet", *TEXT_ENCODERS))
    tokenizers = [CLIPTokenizer.from_pretrained(existing(folder / name)) for name in ("tokenizer", "tokenizer_2")]
    return Sdxl(unet, vae, TextEncoder(tokenizers, encoders, device), _scheduler_config(folder) | said)


def _read_folder(
    folder: Path, device: torch.device, dtype: torch.dtype | None, vae_dtype: torch.dtype
) -> dict[str, Any]:
    networks = {
        "unet": load_network(UNet2DConditionModel, folder / "unet", device, dtype),
        "vae": load_network(AutoencoderKL, folder / "vae", device, vae_dtype),
    }
    for name in TEXT_ENCODERS:
        with logged(name):
            networks[name] = _text_encoder(name, folder, dtype)
    return networks


def _read_single_file(base: Path, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The networks in the file's own types, and what it says of its schedule."""
    tensors = read(file, torch.device("cpu"))
    parts = {
        name: {key: value for key, value in tensors.items() if key.startswith(prefix)}
        for name, prefix in SINGLE_FILE_PARTS.items()
    }
    for name, part in parts.items():
        if not part:
            raise ValueError(f"{file}: not an SDXL checkpoint: no {SINGLE_FILE_PARTS[name]}* ({name})")
    networks = {
        "unet": _convert(UNet2DConditionModel, base / "unet", convert_ldm_unet_checkpoint, parts["unet"], file),
        "vae": _convert(AutoencoderKL, base / "vae", convert_ldm_vae_checkpoint, parts["vae"], file),
        "text_encoder": _text_encoder(
            "text_encoder", base, None, convert_ldm_clip_checkpoint(parts["text_encoder"]), file
        ),
    }
    config = CLIPTextConfig.from_pretrained(existing(base / "text_encoder_2"))
    prefix = SINGLE_FILE_PARTS["text_encoder_2"] + "model."
    second = convert_open_clip_checkpoint(SimpleNamespace(config=config), parts["text_encoder_2"], prefix)
    networks["text_encoder_2"] = _text_encoder("text_encoder_2", base, None, second, file)
    return networks, _said_by(tensors)


def _convert(kind: Any, config: Path, convert: Any, tensors: dict[str, Tensor], file: Path) -> Any:
    """A diffusers network of this configuration with the tensors of the original layout."""
    network = empty(kind, config)
    missing, _ = network.load_state_dict(convert(tensors, config=network.config), strict=False, assign=True)
    if missing:
        raise ValueError(f"{file}: {kind.__name__} lacks {missing[0]} and {len(missing) - 1} more")
    return network


def _text_encoder(
    name: str,
    folder: Path,
    dtype: torch.dtype | None,
    tensors: Mapping[str, Tensor] | None = None,
    file: Path | None = None,
) -> Any:
    """With these tensors, or those of the folder."""
    kind, folder = TEXT_ENCODERS[name], existing(folder / name)
    encoder, report = kind.from_pretrained(
        folder if tensors is None else None,
        config=CLIPTextConfig.from_pretrained(folder),
        state_dict=tensors,
        dtype=dtype or "auto",
        use_safetensors=True,
        local_files_only=True,
        variant=variant(folder),
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{file or folder}: {kind.__name__} lacks {missing[0]} and {len(missing) - 1} more")
    return encoder


def _said_by(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a file says of its schedule, by the empty tensors that trainers of such checkpoints put into it."""
    said: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in tensors else {}
    return said | ({"rescale_betas_zero_snr": True} if "ztsnr" in tensors else {})


def _scheduler_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads(existing(folder / "scheduler" / "scheduler_config.json").read_text()))


def _ready(network: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return nn.Module.to(network, device, dtype).eval().requires_grad_(False)
