"""LoRA files for the toy networks: factors, names, and how they are written and applied."""

import torch
from safetensors.torch import save_file

from instantid.models.sdxl import SdxlModel

from .original_layout import _unet_name

CPU = torch.device("cpu")
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
UNET_LAYERS = (
    f"{ATTENTION}.attn1.to_q", f"{ATTENTION}.attn2.to_k", f"{ATTENTION}.attn2.to_out.0", f"{ATTENTION}.ff.net.0.proj",
    "down_blocks.1.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.1.attn2.to_v",
    "up_blocks.0.resnets.1.conv1", "up_blocks.1.resnets.0.conv_shortcut", "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv",
)  # fmt: skip
TEXT_LAYERS = tuple(
    f"text_model.encoder.layers.1.{name}" for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
)
RANK, ALPHA = 3, 1.5
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def networks(model):
    encoders = [encoder for _, encoder in model.networks.text._parts]
    return {"unet": model.networks.unet, "text_encoder": encoders[0], "text_encoder_2": encoders[1]}


def weight_of(network, layer):
    name = layer if hasattr(network, "text_model") else layer.removeprefix("text_model.")
    return network.get_submodule(name).weight.detach()


def kohya(factors, name_of=lambda part, layer: layer):
    """kohya's names: dots are underscores, alpha beside each pair."""
    tensors = {}
    for (part, layer), (up, down) in factors.items():
        name = KOHYA[part] + name_of(part, layer).replace(".", "_")
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    return tensors


def original_names(unet):
    """kohya's trainer counts the blocks of the UNet as its original layout does."""
    return lambda part, layer: (
        _unet_name(f"{layer}.weight", unet.config).removesuffix(".weight") if part == "unet" else layer
    )


def peft(factors):
    return {
        f"{part}.{layer}.lora_{kind}.weight": tensor
        for (part, layer), (up, down) in factors.items()
        for kind, tensor in (("A", down), ("B", up))
    }


def write(path, tensors, **metadata):
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"} | metadata
    )
    return path


LINEAR, CONV = f"{ATTENTION}.attn2.to_k", "up_blocks.0.resnets.1.conv1"


def kohya_name(layer):
    return f"lora_unet_{layer.replace('.', '_')}"


def changed(weights, model, tensors, folder, layer, weight=1.0, parameter="weight"):
    """What one file does to one layer of the UNet."""
    path = write(folder / "one.safetensors", tensors)
    fused = SdxlModel.load(weights, CPU, torch.float32, loras=[(path, weight)])
    after, before = (m.networks.unet.get_submodule(layer).get_parameter(parameter) for m in (fused, model))
    return after.double(), before.double()
