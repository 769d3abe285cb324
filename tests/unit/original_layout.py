"""Writes SDXL networks under the names of Stability AI's `generative-models`, as community checkpoints have them.

The mapping is written down here from that project's module tree (openaimodel.UNetModel, the VAE of latent diffusion,
CLIP-L of transformers, CLIP-G of open_clip), block by block from this side: nothing of diffusers' loader is used.
"""

import re

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
CLIP_G_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def original_layout(unet, vae, text_encoder, text_encoder_2):
    """One dictionary of tensors, as `safetensors.torch.save_file` takes it."""
    tensors = {f"model.diffusion_model.{name}": value for name, value in _unet(unet).items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in _vae(vae).items()}
    first = {name.removeprefix("text_model."): value for name, value in text_encoder.state_dict().items()}
    tensors |= {f"conditioner.embedders.0.transformer.text_model.{name}": value for name, value in first.items()}
    tensors |= {f"conditioner.embedders.1.model.{name}": value for name, value in _clip_g(text_encoder_2).items()}
    return {name: value.clone().contiguous() for name, value in tensors.items()}


def _unet(unet):
    return {_unet_name(name, unet.config): value for name, value in unet.state_dict().items()}


def _unet_name(name, config):
    module, parameter = name.rsplit(".", 1)
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{parameter}"
    place, level, kind, index, rest = re.match(
        r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.(\w+?)\.(\d+)\.(.*)", name
    ).groups()
    if place == "mid_block":
        return f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{_inside(kind, rest)}"
    layers = config.layers_per_block + (place == "up_blocks")
    first = 1 + int(level) * (layers + 1) if place == "down_blocks" else int(level) * layers
    blocks = "input_blocks" if place == "down_blocks" else "output_blocks"
    if kind == "downsamplers":
        return f"{blocks}.{first + layers}.0.op.{parameter}"
    if kind == "upsamplers":
        attends = "CrossAttn" in config.up_block_types[int(level)]
        return f"{blocks}.{first + layers - 1}.{1 + attends}.conv.{parameter}"
    return f"{blocks}.{first + int(index)}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind, rest):
    if kind != "resnets":
        return rest
    part, parameter = rest.rsplit(".", 1)
    return f"{RESNET[part]}.{parameter}"


def _vae(vae):
    levels = len(vae.config.block_out_channels)
    return dict(_vae_tensor(name, value, levels) for name, value in vae.state_dict().items())


def _vae_tensor(name, value, levels):
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for theirs, ours in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        name = name.replace(f"mid_block.attentions.0.{theirs}", f"mid.attn_1.{ours}")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    is_matrix = "attn_1" in name and value.ndim == 2
    return name, value[:, :, None, None] if is_matrix else value


def _clip_g(encoder):
    theirs = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    ours = {
        "token_embedding.weight": theirs["embeddings.token_embedding.weight"],
        "positional_embedding": theirs["embeddings.position_embedding.weight"],
        "ln_final.weight": theirs["final_layer_norm.weight"],
        "ln_final.bias": theirs["final_layer_norm.bias"],
        "text_projection": theirs["text_projection.weight"].T,
    }
    for i in range(encoder.config.num_hidden_layers):
        layer, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            ours |= {f"{block}.{new}.{kind}": theirs[f"{layer}.{old}.{kind}"] for old, new in CLIP_G_LAYER.items()}
            parts = [theirs[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    return ours
