"""Reads the SDXL part of a set of weights: a diffusers folder, or one file in the original layout.

Community checkpoints come as a single safetensors file with the names of Stability AI's `generative-models`; diffusers'
own single-file loading renames them. Such a file has no configuration: that, and the tokenizers, are the set's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_TO_LDM_MAPPING,
    convert_ldm_clip_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from instantid.models.sdxl.kinds import (
    HARMLESS,
    MARKERS,
    Prediction,
    decode_float8,
    read_schedule,
    refuse_infinite,
    refuse_other_folders,
    refuse_other_kinds,
    refuse_unknown,
)
from instantid.models.sdxl.lora import fuse
from instantid.models.sdxl.names import original_names
from instantid.models.sdxl.network import empty, existing, fill, load_network, logged, read, variant
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
    prediction: Prediction = "auto",
) -> Sdxl:
    """Read `checkpoint`, a diffusers folder or a single safetensors file; None: `base`, the set's own folder.

    `vae_dtype` is never float16, in which the stock SDXL VAE overflows. LoRA files, with their weights, are fused into
    the other networks. `prediction` overrides what the checkpoint says of itself. Raises FileNotFoundError or
    ValueError, naming file and tensor, and what the file is if it is no SDXL base checkpoint.
    """
    source = existing(checkpoint or base)
    folder = base if source.is_file() else source
    schedule = refuse_other_folders(folder)
    if source.is_file():
        with logged(source.name):
            networks, said = _read_single_file(base, source, prediction)
    else:
        networks = _read_folder(folder, device, None if loras else dtype, vae_dtype)
        said = {} if prediction == "auto" else {"prediction_type": prediction}
    vae = _ready(source, "vae", networks.pop("vae"), device, vae_dtype)
    if loras:
        with logged("LoRA files"):
            fuse({name: network.to(device) for name, network in networks.items()}, loras, dtype)
    unet, *encoders = (_ready(source, name, networks[name], device, dtype) for name in ("unet", *TEXT_ENCODERS))
    tokenizers = [CLIPTokenizer.from_pretrained(existing(folder / name)) for name in ("tokenizer", "tokenizer_2")]
    if said.get("prediction_type") == "epsilon":
        said["rescale_betas_zero_snr"] = False
    return Sdxl(unet, vae, TextEncoder(tokenizers, encoders, device), schedule | said)


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


def _read_single_file(base: Path, file: Path, prediction: Prediction) -> tuple[dict[str, Any], dict[str, Any]]:
    """The networks in the file's own types, and what it says of its schedule."""
    tensors = read(file, torch.device("cpu"))
    refuse_other_kinds(file, tensors)
    said = read_schedule(file, tensors, prediction)
    used = (name for name in tensors if name not in MARKERS and not HARMLESS.fullmatch(name))
    tensors = decode_float8(file, {name: tensors[name] for name in used})
    parts: dict[str, dict[str, Tensor]] = {}
    for part, prefix in SINGLE_FILE_PARTS.items():
        parts[part] = {name: tensors.pop(name) for name in [*tensors] if name.startswith(prefix)}
        if not parts[part]:
            raise ValueError(f"{file}: not an SDXL checkpoint: no {prefix}* ({part})")
    refuse_unknown(file, "SDXL", tensors)
    networks = {
        "unet": _unet(base / "unet", parts["unet"], file),
        "vae": _vae(base / "vae", parts["vae"], file),
        "text_encoder": _text_encoder(
            "text_encoder", base, None, convert_ldm_clip_checkpoint(parts["text_encoder"]), file
        ),
        "text_encoder_2": _text_encoder(
            "text_encoder_2", base, None, _open_clip(base, parts["text_encoder_2"], file), file
        ),
    }
    return networks, said


def _unet(config: Path, tensors: Mapping[str, Tensor], file: Path) -> Any:
    network = empty(UNet2DConditionModel, config)
    names = {ours: SINGLE_FILE_PARTS["unet"] + theirs for ours, theirs in original_names(network).items()}
    refuse_unknown(file, "the UNet", tensors.keys() - names.values())
    return fill(network, {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}, file)


def _vae(config: Path, tensors: dict[str, Tensor], file: Path) -> Any:
    network = empty(AutoencoderKL, config)
    converted = convert_ldm_vae_checkpoint(tensors, config=network.config)
    used = {tensor.data_ptr() for tensor in converted.values()}
    refuse_unknown(file, "the VAE", (name for name, tensor in tensors.items() if tensor.data_ptr() not in used))
    return fill(network, converted, file)


def _open_clip(base: Path, tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The second text encoder's tensors by transformers' names."""
    prefix = SINGLE_FILE_PARTS["text_encoder_2"] + "model."
    known: Any = DIFFUSERS_TO_LDM_MAPPING["openclip"]
    ends = {prefix + name for name in known["layers"].values()}
    refuse_unknown(file, "CLIP-G", (n for n in tensors if n not in ends and not n.startswith(f"{prefix}transformer.")))
    config = CLIPTextConfig.from_pretrained(existing(base / "text_encoder_2"))
    converted: dict[str, Tensor] = convert_open_clip_checkpoint(SimpleNamespace(config=config), tensors, prefix)
    return converted


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
        ignore_mismatched_sizes=True,
    )
    source = file or folder
    if wrong := sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"]):
        raise ValueError(
            f"{source}: {kind.__name__} lacks {wrong[0]} and {len(wrong) - 1} more, or their shapes differ"
        )
    refuse_unknown(source, kind.__name__, report["unexpected_keys"])
    return encoder


def _ready(source: Path, name: str, network: Any, device: torch.device, dtype: torch.dtype) -> Any:
    nn.Module.to(network, device, dtype).eval().requires_grad_(False)
    refuse_infinite(source, name, network, dtype)
    return network
