"""The names of SDXL's tensors in the original layout (Stability AI's `generative-models`), and in LoRA files."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from torch import nn

RESNET = {
    ".norm1.": ".in_layers.0.",
    ".conv1.": ".in_layers.2.",
    ".time_emb_proj.": ".emb_layers.1.",
    ".norm2.": ".out_layers.0.",
    ".conv2.": ".out_layers.3.",
    ".conv_shortcut.": ".skip_connection.",
}
PREFIX = re.compile(
    r"(?:base_model\.model\.)?"
    r"(?:(?P<unet>lora_unet[._]|lycoris[._]|unet\.|(?:model\.)?diffusion_model\.)"
    r"|(?P<text_encoder>lora_te1?[._]|text_encoder\.|(?:text_encoders\.)?clip_l\.)"
    r"|(?P<text_encoder_2>lora_te2[._]|text_encoder_2\.|(?:text_encoders\.)?clip_g\.))?"
    r"(?:base_model\.model\.)?(?:transformer\.)?"
)
"""What kohya's trainer, LyCORIS, diffusers, peft, ComfyUI and OneTrainer put before a layer's name."""


def original_names(unet: Any) -> dict[str, str]:
    """Each tensor of a UNet by diffusers' name, with its name in openaimodel.UNetModel."""
    own = list(unet.state_dict())
    known: Any = DIFFUSERS_TO_LDM_MAPPING["unet"]
    ends = known["layers"] | known["addition_embed_type"]
    names = {name: ends[name] for name in own if name in ends}
    for ours, theirs in _blocks(unet):
        for name in own:
            if name.startswith(f"{ours}."):
                rest = name.removeprefix(ours)
                part, parameter = rest.rsplit(".", 1)
                names[name] = theirs + (RESNET[f"{part}."] + parameter if ".resnets." in ours else rest)
    return names


def _blocks(unet: Any) -> Iterator[tuple[str, str]]:
    """Parts of the blocks, which the original layout counts through all levels."""
    count = 1
    for level, block in enumerate(unet.down_blocks):
        for i in range(len(block.resnets)):
            yield f"down_blocks.{level}.resnets.{i}", f"input_blocks.{count}.0"
            yield f"down_blocks.{level}.attentions.{i}", f"input_blocks.{count}.1"
            count += 1
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{count}.0.op"
        count += 1
    for ours, theirs in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
        yield f"mid_block.{ours}", f"middle_block.{theirs}"
    count = 0
    for level, block in enumerate(unet.up_blocks):
        for i in range(len(block.resnets)):
            yield f"up_blocks.{level}.resnets.{i}", f"output_blocks.{count}.0"
            yield f"up_blocks.{level}.attentions.{i}", f"output_blocks.{count}.1"
            count += 1
        place = 1 + hasattr(block, "attentions")
        yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{count - 1}.{place}.conv"


def layers_by_name(networks: Mapping[str, Any]) -> dict[tuple[str, str], nn.Module]:
    """Layers by network and `plain` name, in diffusers' and in the original layout."""
    layers: dict[tuple[str, str], nn.Module] = {}
    for network, module in networks.items():
        names = original_names(module) if network == "unet" else {}
        for name, layer in module.named_modules():
            original = names.get(f"{name}.weight", name).removesuffix(".weight")
            layers |= {(network, plain(known)): layer for known in (name, original)}
    return layers


def split(name: str) -> tuple[str, str]:
    """The network that a LoRA file's name is for, the UNet if it names none, and the rest of the name."""
    match = PREFIX.match(name)
    assert match
    return match.lastgroup or "unet", name[match.end() :]


def plain(name: str) -> str:
    """One form for all: `_` for `.`, and without what older versions of diffusers put into names."""
    name = name.replace(".", "_").removeprefix("text_model_").replace("_processor_to_", "_to_").removesuffix("_lora")
    name = re.sub(r"self_attn_to_(q|k|v|out)$", r"self_attn_\1_proj", name)
    return re.sub(r"_to_out$", "_to_out_0", name)
