"""What a checkpoint says it is, by names, shapes, types and metadata; what is not SDXL's base is refused by name.

The names are those of `generative-models`, ComfyUI (prediction, scaled float8) and bitsandbytes (quantised forms).
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from instantid.models.sdxl.network import require

Prediction = Literal["auto", "epsilon", "v_prediction"]
SERVED = "only SDXL base checkpoints that predict epsilon or v are served"
KINDS = {
    r"^edm_vpred\.": "an EDM model that predicts velocity (CosXL)",
    r"^edm_(mean|std)$": "an EDM model (Playground 2.5)",
    r"\.quant_state\.|\.absmax$|\.quant_map$|\.nested_": "quantised to 4 bits (nf4 or fp4)",
    r"\.SCB$|\.qweight$|\.weight_format$": "quantised to whole numbers",
    r"^cond_stage_model\.model\.": "Stable Diffusion 2",
    r"^cond_stage_model\.": "Stable Diffusion 1.5",
    r"^conditioner\.embedders\.0\.model\.": "the SDXL refiner",
    r"joint_blocks\.|double_blocks\.|single_blocks\.": "Stable Diffusion 3 or FLUX",
    r"^control_model\.|input_hint_block\.": "a ControlNet",
    r"[._](lora_|hada_|lokr_)": "a LoRA file, which INSTANTID_LORA takes",
    r"^(down_blocks|encoder|decoder|text_model)\.": "one network, not a whole checkpoint",
}
"""Names that only other models have, and what these are."""
CHANNELS = {5: "an inpainting model", 4: "an instruct-pix2pix model"}
"""What a UNet is that takes so many channels more than its latents have."""
HARMLESS = re.compile(
    r".*position_ids|.*logit_scale|conditioner\.embedders\.0\.(transformer\.)?text_projection(\.weight)?"
    r"|(.*\.)?model_ema\..*|first_stage_model\.loss\..*|denoiser\.(log_)?sigmas|.*\.(scale_input|input_scale)"
    r"|(.*\.)?scaled_fp8|.*\.comfy_quant|(alphas_cumprod|betas|sqrt_|log_one_minus_|posterior_|lvlb_weights|logvar).*|global_step"
)
"""Names without use here: buffers, averages of training, losses, the types in which ComfyUI would multiply."""
MARKERS = ("v_pred", "ztsnr")
"""Empty tensors by which a file says how it predicts."""
VELOCITY = ("v", "v_prediction", "v-prediction", "velocity")
PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon"} | dict.fromkeys(VELOCITY, "v_prediction")


def refuse_other_kinds(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError, saying what the file is, for any but an SDXL base checkpoint in floating point."""
    for pattern, kind in KINDS.items():
        if any(re.search(pattern, name) for name in tensors):
            raise ValueError(f"{file}: this is {kind}; {SERVED}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and name.endswith((".weight", ".bias")):
            raise ValueError(f"{file}: {name} is quantised ({tensor.dtype}); serve a file in floating point instead")
    first, last = (tensors.get(f"model.diffusion_model.{name}.weight") for name in ("input_blocks.0.0", "out.2"))
    if first is not None and last is not None:
        _refuse_channels(file, first.shape[1], len(last))


def refuse_other_folders(folder: Path) -> dict[str, Any]:
    """The scheduler's configuration of a diffusers folder. Raises as `refuse_other_kinds`."""
    files = folder / "unet/config.json", folder / "scheduler/scheduler_config.json"
    unet, scheduler = (json.loads(require(file).read_text()) for file in files)
    _refuse_channels(folder, unet.get("in_channels", 4), unet.get("out_channels", 4))
    kind = ""
    if "quantization_config" in unet:
        kind = "quantised"
    elif unet.get("addition_embed_type") != "text_time":
        kind = "Stable Diffusion 1.5 or 2"
    elif (folder / "text_encoder_2").exists() and not (folder / "text_encoder").exists():
        kind = "the SDXL refiner"
    elif re.search("EDM|Flow", said := " ".join(str(scheduler.get(key)) for key in ("_class_name", "prediction_type"))):
        kind = f"a model for other schedulers ({said})"
    elif scheduler.get("prediction_type", "epsilon") not in PREDICTIONS:
        kind = f"a model that predicts {scheduler['prediction_type']}"
    if kind:
        raise ValueError(f"{folder}: this is {kind}; {SERVED}")
    return dict(scheduler)


def _refuse_channels(path: Path, taken: int, given: int) -> None:
    if taken != given:
        kind = CHANNELS.get(taken - given, "another model")
        raise ValueError(f"{path}: the UNet takes {taken} channels, so this is {kind}; {SERVED}")


def read_schedule(file: Path, names: Iterable[str], wanted: Prediction) -> dict[str, Any]:
    """What a file says of its schedule, by metadata and by ComfyUI's empty tensors; `wanted` overrides it.

    Zero terminal SNR needs timesteps from the end (arXiv 2305.08891). Raises ValueError for what cannot be.
    """
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    keys = ("modelspec.prediction_type", "modelspec.predict_key")
    said = {metadata[key].lower() for key in keys if key in metadata} | ({"v"} if "v_pred" in names else set())
    found = {PREDICTIONS.get(value, value) for value in said}
    if wanted != "auto":
        found = {wanted}
    elif len(found) > 1 or not found <= {*PREDICTIONS.values()} or ("ztsnr" in names and found != {"v_prediction"}):
        claims = ", ".join(sorted(found) + ["zero terminal SNR"] * ("ztsnr" in names))
        asked = f"{SERVED}: set INSTANTID_PREDICTION_TYPE to say which"
        raise ValueError(f"{file}: says that it predicts: {claims}; {asked}")
    schedule: dict[str, Any] = dict(zip(("prediction_type",), found, strict=False))
    if "ztsnr" in names and found == {"v_prediction"}:
        return schedule | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return schedule


def decode_float8(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the scales of float8 weights, one for a tensor or for each output, which these are multiplied by.

    float8 becomes float16, which holds each of its values, or float32 where it is scaled.
    """
    decoded = {name: t.half() if "float8" in str(t.dtype) else t for name, t in tensors.items()}
    for name, scale in tensors.items():
        weight = re.sub(r"\.(scale_weight|weight_scale)$", ".weight", name)
        if weight == name:
            continue
        scaled = tensors.get(weight)
        if scaled is None or "float8" not in str(scaled.dtype) or scale.numel() not in (1, len(scaled)):
            raise ValueError(f"{file}: {name} scales no float8 weight; serve a file in float16 instead")
        decoded[weight] = scaled.float() * scale.float().reshape(-1, *(1,) * (scaled.ndim - 1))
        del decoded[name]
    return decoded


def refuse_unknown(source: Path, kind: str, names: Iterable[str]) -> None:
    """Raises ValueError for names that have no place in the network."""
    if strange := sorted(name for name in names if not HARMLESS.fullmatch(name)):
        raise ValueError(f"{source}: {kind} has no place for {strange[0]} and {len(strange) - 1} more")


def refuse_infinite(source: Path, part: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Raises ValueError if a tensor is NaN, infinite, or too large for the type that serves."""
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    if wrong := [name for name, good in zip(tensors, finite, strict=True) if not good]:
        beyond = ", infinite or beyond 65504; try INSTANTID_DTYPE=bfloat16"
        kind = beyond if dtype == torch.float16 else " or infinite"
        raise ValueError(f"{source}: {part}.{wrong[0]} and {len(wrong) - 1} more tensors are NaN{kind}")
