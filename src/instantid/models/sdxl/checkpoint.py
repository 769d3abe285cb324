"""Reads the SDXL part of a set of weights: a diffusers folder, or one file in the original layout.

Community checkpoints come as a single safetensors file with the names of Stability AI's `generative-models`; diffusers'
own single-file loading renames them. Such a file has no configuration: that, and the tokenizers, are the set's own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as renaming
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from instantid.models.sdxl import kinds
from instantid.models.sdxl.lora import fuse
from instantid.models.sdxl.names import original_names
from instantid.models.sdxl.network import fill, load_network, log_seconds, meta_network, read, require, variant
from instantid.models.sdxl.text import TextEncoder

TEXT_ENCODERS: Mapping[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
SINGLE_FILE_PARTS = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.",
    "text_encoder_2": "conditioner.embedders.1.",
}
"""Where each network lies in a file of the original layout."""


class Sdxl(NamedTuple):
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
    prediction: kinds.Prediction = "auto",
) -> Sdxl:
    """Read `checkpoint`, a diffusers folder or a single safetensors file; None: `base`, the set's own folder.

    `vae_dtype` is never float16, in which the stock SDXL VAE overflows. Raises FileNotFoundError or ValueError, naming
    file and tensor, and what the file is if it is no SDXL base checkpoint. For the rest see `SdxlModel.load`.
    """
    source = require(checkpoint or base)
    folder = base if source.is_file() else source
    schedule = kinds.refuse_other_folders(folder)
    if source.is_file():
        with log_seconds(source.name):
            networks, said = _read_single_file(base, source, prediction)
    else:
        networks = _read_folder(folder, device, None if loras else dtype, vae_dtype)
        said = {} if prediction == "auto" else {"prediction_type": prediction}
    vae = _ready(source, "vae", networks.pop("vae"), device, vae_dtype)
    if loras:
        with log_seconds("LoRA files"):
            fuse({name: network.to(device) for name, network in networks.items()}, loras, dtype)
    unet, *encoders = (_ready(source, name, networks[name], device, dtype) for name in ("unet", *TEXT_ENCODERS))
    tokenizers = [CLIPTokenizer.from_pretrained(require(folder / name)) for name in ("tokenizer", "tokenizer_2")]
    if said.get("prediction_type") == "epsilon":
        said["rescale_betas_zero_snr"] = False
    return Sdxl(unet, vae, TextEncoder(tokenizers, encoders, device), schedule | said)


def _read_folder(
    folder: Path, device: torch.device, dtype: torch.dtype | None, vae_dtype: torch.dtype
) -> dict[str, Any]:
    networks = {"unet": load_network(UNet2DConditionModel, folder / "unet", device, dtype)}
    networks["vae"] = load_network(AutoencoderKL, folder / "vae", device, vae_dtype)
    for name in TEXT_ENCODERS:
        with log_seconds(name):
            networks[name] = _text_encoder(name, folder, dtype)
    return networks


def _read_single_file(base: Path, file: Path, prediction: kinds.Prediction) -> tuple[dict[str, Any], dict[str, Any]]:
    """The networks in the file's own types, and what it says of its schedule."""
    tensors = read(file, torch.device("cpu"))
    kinds.refuse_other_kinds(file, tensors)
    said = kinds.read_schedule(file, tensors, prediction)
    used = (name for name in tensors if name not in kinds.MARKERS and not kinds.HARMLESS.fullmatch(name))
    tensors = kinds.decode_float8(file, {name: tensors[name] for name in used})
    parts: dict[str, dict[str, Tensor]] = {}
    for part, prefix in SINGLE_FILE_PARTS.items():
        parts[part] = {name: tensors.pop(name) for name in [*tensors] if name.startswith(prefix)}
        if not parts[part]:
            raise ValueError(f"{file}: not an SDXL checkpoint: no {prefix}* ({part})")
    kinds.refuse_unknown(file, "SDXL", tensors)
    networks = {"unet": _unet(base, parts["unet"], file), "vae": _vae(base, parts["vae"], file)}
    first = renaming.convert_ldm_clip_checkpoint(parts["text_encoder"])
    second = _open_clip(base, parts["text_encoder_2"], file)
    for name, renamed in zip(TEXT_ENCODERS, (first, second), strict=True):
        networks[name] = _text_encoder(name, base, None, renamed, file)
    return networks, said


def _unet(base: Path, tensors: Mapping[str, Tensor], file: Path) -> Any:
    network = meta_network(UNet2DConditionModel, base / "unet")
    names = {ours: SINGLE_FILE_PARTS["unet"] + theirs for ours, theirs in original_names(network).items()}
    kinds.refuse_unknown(file, "the UNet", tensors.keys() - names.values())
    return fill(network, {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}, file)


def _vae(base: Path, tensors: dict[str, Tensor], file: Path) -> Any:
    network = meta_network(AutoencoderKL, base / "vae")
    converted = renaming.convert_ldm_vae_checkpoint(tensors, config=network.config)
    used = {tensor.data_ptr() for tensor in converted.values()}
    kinds.refuse_unknown(file, "the VAE", (name for name, tensor in tensors.items() if tensor.data_ptr() not in used))
    return fill(network, converted, file)


def _open_clip(base: Path, tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The second text encoder's tensors by transformers' names."""
    prefix = SINGLE_FILE_PARTS["text_encoder_2"] + "model."
    known: Any = renaming.DIFFUSERS_TO_LDM_MAPPING["openclip"]
    ends = {prefix + name for name in known["layers"].values()}
    kinds.refuse_unknown(
        file, "CLIP-G", (n for n in tensors if n not in ends and not n.startswith(f"{prefix}transformer."))
    )
    config = CLIPTextConfig.from_pretrained(require(base / "text_encoder_2"))
    return renaming.convert_open_clip_checkpoint(SimpleNamespace(config=config), tensors, prefix)


def _text_encoder(
    name: str,
    folder: Path,
    dtype: torch.dtype | None,
    tensors: Mapping[str, Tensor] | None = None,
    file: Path | None = None,
) -> Any:
    """With these tensors of `file`, or those of the folder."""
    kind, folder = TEXT_ENCODERS[name], require(folder / name)
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
        lacking = f"{wrong[0]} and {len(wrong) - 1} more"
        raise ValueError(f"{source}: {kind.__name__} lacks {lacking}, or their shapes differ")
    kinds.refuse_unknown(source, kind.__name__, report["unexpected_keys"])
    return encoder


def _ready(source: Path, name: str, network: Any, device: torch.device, dtype: torch.dtype) -> Any:
    nn.Module.to(network, device, dtype).eval().requires_grad_(False)
    kinds.refuse_infinite(source, name, dict(network.named_parameters()), dtype)
    return network
