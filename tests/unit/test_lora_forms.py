"""Every form of change that LoRA files hold, against peft and against the formula."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from instantid.models.sdxl import SdxlModel

from .diffusing import relative
from .lora_files import ATTENTION, CONV, CPU, LINEAR, changed, kohya_name, weight_of

ORIGINAL = "output_blocks_1_0_in_layers_2"


@pytest.mark.parametrize(("stabilised", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_peft_writes_alpha_beside_the_file(diffusion_weights, model, tmp_path, stabilised, scale):
    """`save_pretrained` of peft itself, and its own merged weight (arXiv 2312.03732 for the root)."""
    peft = pytest.importorskip("peft")
    unet = diffusers.UNet2DConditionModel.from_pretrained(diffusion_weights / "sdxl" / "unet")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[LINEAR], use_rslora=stabilised, init_lora_weights=False)
    adapted = peft.get_peft_model(unet, config)
    adapted.save_pretrained(tmp_path)
    fused = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(tmp_path / "adapter_model.safetensors", 1.0)])
    expected = adapted.merge_and_unload().get_submodule(LINEAR).weight
    found, before = weight_of(fused.networks.unet, LINEAR), weight_of(model.networks.unet, LINEAR)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
    factors = {n[-13:-7]: t for n, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    torch.testing.assert_close(found, before + scale * factors["lora_B"] @ factors["lora_A"], rtol=1e-5, atol=1e-6)


def by_peft(kind, layer, unet, **options):
    """A layer that peft adapted with random factors: its tensors by their own names, and its change of the weight."""
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(r=4, alpha=2, target_modules=[layer], init_weights=False, **options)
    module = peft.get_peft_model(unet, config).base_model.model.get_submodule(layer)
    tensors = {name.removesuffix(".default"): value.detach() for name, value in module.named_parameters()}
    tensors = {name: value.normal_(0, 0.3) for name, value in tensors.items() if "base_layer" not in name}
    return tensors, module.get_delta_weight("default").detach()


LYCORIS = {
    "LoHa": ("LoHaConfig", {}),
    "LoHa, Tucker": ("LoHaConfig", {"use_effective_conv2d": True}),
    "LoKr": ("LoKrConfig", {}),
    "LoKr, both factors products": ("LoKrConfig", {"decompose_both": True}),
    "LoKr, Tucker": ("LoKrConfig", {"use_effective_conv2d": True}),
}


@pytest.mark.parametrize("layer", [LINEAR, CONV])
@pytest.mark.parametrize("form", LYCORIS)
def test_lycoris_forms_are_peft_s(diffusion_weights, model, tmp_path, form, layer):
    kind, options = LYCORIS[form]
    torch.manual_seed(3)
    unet = diffusers.UNet2DConditionModel.from_pretrained(diffusion_weights / "sdxl" / "unet")
    parts, delta = by_peft(kind, layer, unet, **options)
    tensors = {f"{kohya_name(layer)}.{name}": value for name, value in parts.items()}
    tensors[f"{kohya_name(layer)}.alpha"] = torch.tensor(2.0)
    after, before = changed(diffusion_weights, model, tensors, tmp_path, layer, 0.5)
    assert float(delta.abs().max()) > 1e-3
    torch.testing.assert_close(after, before + 0.5 * delta.double(), rtol=1e-5, atol=1e-6)


def test_lokr_of_two_whole_factors_knows_no_alpha(diffusion_weights, model, tmp_path):
    first, second = torch.randn(4, 8), torch.randn(16, 8) * 0.1
    name = kohya_name(f"{ATTENTION}.attn1.to_q")
    tensors = {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second, f"{name}.alpha": torch.tensor(1e10)}
    after, before = changed(diffusion_weights, model, tensors, tmp_path, f"{ATTENTION}.attn1.to_q")
    expected = torch.einsum("ab,cd->acbd", first.double(), second.double()).reshape(64, 64)
    torch.testing.assert_close(after, before + expected, rtol=1e-6, atol=1e-6)


def test_locon_with_a_middle_factor_is_a_chain_of_convolutions(diffusion_weights, model, tmp_path):
    """Its change applied to an input is `up(mid(down(input)))`."""
    weight = weight_of(model.networks.unet, CONV)
    down, mid, up = torch.randn(2, weight.shape[1], 1, 1), torch.randn(2, 2, 3, 3), torch.randn(len(weight), 2, 1, 1)
    tensors = {f"lora_unet_{ORIGINAL}.lora_{k}.weight": t for k, t in (("down", down), ("mid", mid), ("up", up))}
    after, before = changed(diffusion_weights, model, tensors, tmp_path, CONV)
    picture = torch.randn(1, weight.shape[1], 6, 6).double()
    chain = torch.conv2d(torch.conv2d(torch.conv2d(picture, down.double()), mid.double()), up.double())
    torch.testing.assert_close(torch.conv2d(picture, after - before), chain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_dora_of_peft(diffusion_weights, model, tmp_path, layer):
    """`use_dora` of peft, saved by diffusers' own names: its merged weight."""
    peft = pytest.importorskip("peft")
    unet = diffusers.UNet2DConditionModel.from_pretrained(diffusion_weights / "sdxl" / "unet")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[layer], use_dora=True, init_lora_weights=False)
    adapted = peft.get_peft_model(unet, config)
    with torch.no_grad():
        adapted.base_model.model.get_submodule(layer).lora_magnitude_vector.default.weight.mul_(1.3)
    adapted.save_pretrained(tmp_path)
    fused = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(tmp_path / "adapter_model.safetensors", 1.0)])
    expected = adapted.merge_and_unload().get_submodule(layer).weight.detach()
    assert relative(expected, weight_of(model.networks.unet, layer)) > 0.1
    torch.testing.assert_close(weight_of(fused.networks.unet, layer), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_input", [True, False])
@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_dora_of_lycoris_keeps_the_trained_norms(diffusion_weights, model, tmp_path, layer, by_input):
    """Older files scale each input (`dora_scale` [1, in, ...]), newer ones each output ([out, 1, ...])."""
    weight = weight_of(model.networks.unet, layer)
    axis = 1 if by_input else 0
    scale = (torch.rand(weight.shape[axis]) + 0.5).reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    up, down = torch.randn(len(weight), 2, *(1,) * (weight.ndim - 2)), torch.randn(2, *weight.shape[1:])
    name = kohya_name(layer)
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.dora_scale": scale}
    tensors[f"{name}.alpha"] = torch.tensor(1.0)
    after, before = changed(diffusion_weights, model, tensors, tmp_path, layer, 0.25)
    merged = before + 0.5 * torch.einsum("or,ri...->oi...", up.double().flatten(1), down.double())
    rows = merged.transpose(0, axis)
    norms = torch.stack([row.square().sum().sqrt() for row in rows])
    expected = (rows * (scale.double().flatten() / norms).reshape(-1, *(1,) * (weight.ndim - 1))).transpose(0, axis)
    torch.testing.assert_close(after, before + 0.25 * (expected - before), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "ending", "parameter"),
    [
        (CONV, "diff", "weight"),
        (CONV, "diff_b", "bias"),
        ("up_blocks.0.resnets.1.norm1", "w_norm", "weight"),
        ("up_blocks.0.resnets.1.norm1", "b_norm", "bias"),
        ("conv_norm_out", "w_norm", "weight"),
    ],
)
def test_whole_differences_are_added(diffusion_weights, model, tmp_path, layer, ending, parameter):
    difference = torch.randn_like(model.networks.unet.get_submodule(layer).get_parameter(parameter))
    tensors = {f"{kohya_name(layer)}.{ending}": difference}
    after, before = changed(diffusion_weights, model, tensors, tmp_path, layer, -0.5, parameter)
    torch.testing.assert_close(after, before - 0.5 * difference.double(), rtol=1e-6, atol=1e-6)
