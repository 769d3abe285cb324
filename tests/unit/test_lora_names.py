"""Every prefix and naming of LoRA files finds its layers."""

import re

import diffusers
import pytest
import torch

from instantid.models.sdxl import SdxlModel
from instantid.models.sdxl.lora import _read

from .lora_files import ATTENTION, CONV, CPU, changed, kohya, networks, original_names, weight_of, write
from .original_layout import _unet_name
from .test_checkpoints import FULL_UNET


@pytest.mark.long
@pytest.mark.parametrize("original", [False, True])
def test_every_layer_of_the_full_sized_unet_is_found(tmp_path, original):
    """On no memory. The published LCM and Hyper-SD files change the 788 layers inside its blocks."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**FULL_UNET)
    layers = {n: m for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    layers = {name: module for name, module in layers.items() if "block" in name}
    assert len(layers) == 788
    pairs = {
        ("unet", name): (
            torch.zeros(len(m.weight), 1, *(1,) * (m.weight.ndim - 2)),
            torch.zeros(1, *m.weight.shape[1:]),
        )
        for name, m in layers.items()
    }
    path = write(tmp_path / "all.safetensors", kohya(pairs, original_names(unet)) if original else kohya(pairs))
    assert {module for module, *_ in _read(path, {"unet": unet})} == set(layers.values())


PREFIXES = {
    "peft": ("base_model.model.{layer}.lora_A.weight", "base_model.model.{layer}.lora_B.weight"),
    "peft within a pipeline": (
        "unet.base_model.model.{layer}.lora_A.weight",
        "unet.base_model.model.{layer}.lora_B.weight",
    ),
    "peft, named adapter": ("unet.{layer}.lora_A.default.weight", "unet.{layer}.lora_B.default.weight"),
    "ComfyUI": ("diffusion_model.{original}.lora_A.weight", "diffusion_model.{original}.lora_B.weight"),
    "ComfyUI, kohya's factors": (
        "diffusion_model.{original}.lora_down.weight",
        "diffusion_model.{original}.lora_up.weight",
    ),
    "OneTrainer": ("unet.{original}.lora_down.weight", "unet.{original}.lora_up.weight"),
    "OneTrainer, older": ("lora_unet.{layer}.lora_down.weight", "lora_unet.{layer}.lora_up.weight"),
    "LyCORIS": ("lycoris_{flat}.lora_down.weight", "lycoris_{flat}.lora_up.weight"),
    "kohya, original": ("lora_unet_{flat_original}.lora_down.weight", "lora_unet_{flat_original}.lora_up.weight"),
    "diffusers": ("unet.{layer}.lora.down.weight", "unet.{layer}.lora.up.weight"),
}


@pytest.mark.parametrize("layer", [CONV, "add_embedding.linear_1", "conv_in", "time_embedding.linear_2"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_finds_its_layer(diffusion_weights, model, tmp_path, prefix, layer):
    unet = model.networks.unet
    original = _unet_name(f"{layer}.weight", unet.config).removesuffix(".weight")
    names = {"layer": layer, "flat": layer.replace(".", "_"), "original": original}
    down_name, up_name = (name.format(**names, flat_original=original.replace(".", "_")) for name in PREFIXES[prefix])
    weight = weight_of(unet, layer)
    up = torch.randn(len(weight), 2, *(1,) * (weight.ndim - 2)) * 0.1
    down = torch.randn(2, *weight.shape[1:])
    after, before = changed(diffusion_weights, model, {up_name: up, down_name: down}, tmp_path, layer)
    product = torch.einsum("or,ri...->oi...", up.double().flatten(1), down.double())
    torch.testing.assert_close(after, before + product, rtol=1e-6, atol=1e-6)


TEXT_NAMES = {
    "kohya's case F21": ("lora_te1_text_model_encoder_layers_1_self_attn_q_proj.lora_{}.weight", "text_encoder"),
    "one text encoder": ("lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_{}.weight", "text_encoder"),
    "second": ("lora_te2_text_model_encoder_layers_1_self_attn_q_proj.lora_{}.weight", "text_encoder_2"),
    "OneTrainer": ("clip_g.text_model.encoder.layers.1.self_attn.q_proj.lora_{}.weight", "text_encoder_2"),
    "ComfyUI": ("clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj.lora_{}.weight", "text_encoder"),
    "diffusers 0.15": ("text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora.{}.weight", "text_encoder"),
    "diffusers": (
        "text_encoder_2.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.{}.weight", "text_encoder_2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXT_NAMES)
@pytest.mark.parametrize("alpha", [None, torch.tensor(1.0), torch.tensor([1.0])])
def test_one_layer_of_a_text_encoder(diffusion_weights, model, tmp_path, case, alpha):
    """The trainer of case F21 left `out_proj` alone. An alpha is a number or a list of one."""
    name, part = TEXT_NAMES[case]
    width = 32 if part == "text_encoder" else 64
    factors = {name.format("up"): torch.randn(width, 2) * 0.1, name.format("down"): torch.randn(2, width)}
    scale = 1.0 if alpha is None else 0.5
    layer = re.sub(r"[._]lora.*", "", name.format("up"))
    path = write(tmp_path / "text.safetensors", factors | ({} if alpha is None else {f"{layer}.alpha": alpha}))
    fused = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(path, 1.0)])
    place = "text_model.encoder.layers.1.self_attn.q_proj"
    up, down = factors.values()
    expected = weight_of(networks(model)[part], place) + scale * up @ down
    torch.testing.assert_close(weight_of(networks(fused)[part], place), expected, rtol=1e-5, atol=1e-6)


def test_diffusers_old_names_of_attention_processors(diffusion_weights, model, tmp_path):
    factors = {"up": torch.randn(64, 2) * 0.1, "down": torch.randn(2, 64)}
    layer = f"{ATTENTION}.attn1.to_out.0"
    tensors = {f"unet.{ATTENTION}.attn1.processor.to_out_lora.{k}.weight": v for k, v in factors.items()}
    after, before = changed(diffusion_weights, model, tensors, tmp_path, layer)
    torch.testing.assert_close(after, before + factors["up"].double() @ factors["down"].double(), rtol=1e-6, atol=1e-6)
