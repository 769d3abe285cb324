"""Reads the SDXL part of a set of weights: a diffusers folder, or one file in the original layout.

Community checkpoints come as a single safetensors file with the names of Stability AI's `generative-models`; diffusers'
own single-file loading renames them. Such a file has no configuration: that, and the tokenizers, are the set's own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_diffusers_clip_model_from_ldm,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from instantid.diffusion.text import TextEncoder

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


def load_sdxl(base: Path, checkpoint: Path | None, device: torch.device, dtype: torch.dtype) -> Sdxl:
    """Read `checkpoint`, a diffusers folder or a single safetensors file; None: `base`, the set's own folder.

    The VAE decodes in float32 beside float32 networks and in bfloat16 beside 16-bit ones: the stock SDXL VAE
    overflows in float16. Raises FileNotFoundError or ValueError, naming file and tensor.
    """
    vae_dtype = dtype if dtype == torch.float32 else torch.bfloat16
    if checkpoint is not None and existing(checkpoint).is_file():
        return _load_single_file(base, checkpoint, device, dtype, vae_dtype)
    folder = checkpoint or base
    encoders = [
        kind.from_pretrained(
            existing(folder / name),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            variant=_variant(folder / name),
        )
        for name, kind in TEXT_ENCODERS.items()
    ]
    return Sdxl(
        unet=load_network(UNet2DConditionModel, folder / "unet", device, dtype),
        vae=load_network(AutoencoderKL, folder / "vae", device, vae_dtype),
        text=_text(folder, encoders, device),
        scheduler_config=_scheduler_config(folder),
    )


def load_network(network: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A diffusers network from its folder, with every tensor it needs and no other."""
    existing(folder / "config.json")
    loaded, report = network.from_pretrained(
        folder,
        torch_dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        variant=_variant(folder),
    )
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            names = sorted(report[problem])
            raise ValueError(f"{folder}: {problem.replace('_', ' ')}: {names[0]} and {len(names) - 1} more")
    return _ready(loaded, device)


def existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: this set of weights is not whole")
    return path


def _load_single_file(base: Path, file: Path, device: torch.device, dtype: torch.dtype, vae_dtype: torch.dtype) -> Sdxl:
    tensors = _read(file)
    parts = {
        name: {key: value for key, value in tensors.items() if key.startswith(prefix)}
        for name, prefix in SINGLE_FILE_PARTS.items()
    }
    for name, part in parts.items():
        if not part:
            raise ValueError(f"{file}: not an SDXL checkpoint: no {SINGLE_FILE_PARTS[name]}* ({name})")
    unet = _convert(UNet2DConditionModel, base / "unet", convert_ldm_unet_checkpoint, parts["unet"], dtype)
    vae = _convert(AutoencoderKL, base / "vae", convert_ldm_vae_checkpoint, parts["vae"], vae_dtype)
    encoders = [
        create_diffusers_clip_model_from_ldm(kind, parts[name], name, str(base), local_files_only=True)
        for name, kind in TEXT_ENCODERS.items()
    ]
    for network in (unet, vae, *encoders):
        _check_whole(network, file)
    text = _text(base, [encoder.to(dtype) for encoder in encoders], device)
    return Sdxl(_ready(unet, device), _ready(vae, device), text, _scheduler_config(base) | _said_by(tensors))


def _convert(kind: Any, config: Path, convert: Any, tensors: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """A diffusers network of this configuration with the tensors of the original layout; absent ones stay on meta."""
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(existing(config)))
    named = {name: tensor.to(dtype) for name, tensor in convert(tensors, config=network.config).items()}
    network.load_state_dict(named, strict=False, assign=True)
    return network


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file: {error}") from None


def _said_by(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a file says of its schedule, by the empty tensors that trainers of such checkpoints put into it."""
    said: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in tensors else {}
    return said | ({"rescale_betas_zero_snr": True} if "ztsnr" in tensors else {})


def _check_whole(network: nn.Module, file: Path) -> None:
    missing = [name for name, value in network.named_parameters() if value.is_meta]
    if missing:
        raise ValueError(f"{file}: {type(network).__name__} lacks {missing[0]} and {len(missing) - 1} more")


def _variant(folder: Path) -> str | None:
    """`fp16` where a folder has only the files of that name, as on the hub."""
    has_default = any(folder.glob("*model.safetensors")) or any(folder.glob("*.safetensors.index.json"))
    return "fp16" if not has_default and any(folder.glob("*.fp16*safetensors*")) else None


def _scheduler_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads(existing(folder / "scheduler" / "scheduler_config.json").read_text()))


def _text(folder: Path, encoders: list[Any], device: torch.device) -> TextEncoder:
    tokenizers = [CLIPTokenizer.from_pretrained(existing(folder / name)) for name in ("tokenizer", "tokenizer_2")]
    return TextEncoder(tokenizers, [_ready(encoder, device) for encoder in encoders], device)


def _ready(network: Any, device: torch.device) -> Any:
    return network.to(device).eval().requires_grad_(False)
