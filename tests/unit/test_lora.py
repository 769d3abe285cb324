"""LoRA files in every naming, against the formula and against diffusers' own loading and fusing."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from build_tools.weights import MINIATURE
from instantid.models.sdxl import SdxlModel
from instantid.models.sdxl.lora import _read
from instantid.profile import FEW_STEPS
from instantid.settings import Settings

from .original_layout import _unet_name
from .test_checkpoints import FULL_UNET
from .test_diffusion import make_job, relative, run

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


@pytest.fixture(scope="module")
def pristine(diffusion_weights):
    return SdxlModel.load(diffusion_weights, CPU, torch.float32)


@pytest.fixture(scope="module")
def factors(pristine):
    """Layer to up and down; layers by diffusers' names, with `text_model.` in the text encoders'."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for part, network in networks(pristine).items():
        for layer in UNET_LAYERS if part == "unet" else TEXT_LAYERS:
            weight = weight_of(network, layer)
            up = torch.randn(len(weight), RANK, *(1,) * (weight.ndim - 2), generator=generator)
            found[part, layer] = 0.1 * up, torch.randn(RANK, *weight.shape[1:], generator=generator) * 0.2
    return found


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


NAMINGS = ("kohya", "kohya, original names", "peft", "peft with alphas")


@pytest.fixture(scope="module", params=NAMINGS)
def file(request, factors, pristine, tmp_path_factory):
    """A file, and what its factors are multiplied by, layer by layer."""
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    scales = dict.fromkeys(factors, ALPHA / RANK)
    if request.param == "kohya":
        write(path, kohya(factors))
    elif request.param == "kohya, original names":
        write(path, kohya(factors, original_names(pristine.networks.unet)))
    elif request.param == "peft":
        write(path, peft(factors))
        scales = dict.fromkeys(factors, 1.0)
    else:
        facts = {f"{part}.{name}": value for part in KOHYA for name, value in (("r", RANK), ("lora_alpha", ALPHA))}
        facts |= {
            f"{part}.target_modules": sorted({name.split(".")[-1] for p, name in factors if p == part})
            for part in KOHYA
        }
        facts |= {"unet.alpha_pattern": {"conv1": 6.0}, "unet.target_modules": UNET_LAYERS}
        write(path, peft(factors), lora_adapter_metadata=json.dumps(facts))
        scales |= {key: 6.0 / RANK for key in factors if key[1].endswith("conv1")}
    return path, scales


def by_formula(pristine, factors, scales, weight=1.0):
    """`W + weight * alpha / rank * up @ down` in float64."""
    for (part, layer), (up, down) in factors.items():
        product = torch.einsum("or,ri...->oi...", up.double().flatten(1), down.double())
        yield part, layer, weight_of(networks(pristine)[part], layer).double() + weight * scales[part, layer] * product


def test_every_naming_is_the_formula(diffusion_weights, pristine, factors, file):
    path, scales = file
    fused = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(path, 0.7)])
    for part, layer, expected in by_formula(pristine, factors, scales, 0.7):
        torch.testing.assert_close(
            weight_of(networks(fused)[part], layer).double(), expected, rtol=1e-6, atol=1e-6, msg=f"{part}.{layer}"
        )
    other = f"{ATTENTION}.attn1.to_k"
    assert torch.equal(weight_of(fused.networks.unet, other), weight_of(pristine.networks.unet, other))


def test_fused_weights_are_diffusers(diffusion_weights, factors, file):
    pytest.importorskip("peft", reason="diffusers loads LoRA files with peft")
    path, _ = file
    folder = diffusion_weights / "sdxl"
    pipeline = StableDiffusionXLPipeline(
        **{
            name: kind.from_pretrained(folder / name)
            for name, kind in (
                ("unet", diffusers.UNet2DConditionModel),
                ("vae", diffusers.AutoencoderKL),
                ("text_encoder", CLIPTextModel),
                ("text_encoder_2", CLIPTextModelWithProjection),
                ("tokenizer", CLIPTokenizer),
                ("tokenizer_2", CLIPTokenizer),
                ("scheduler", diffusers.EulerDiscreteScheduler),
            )
        }
    )
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    pipeline.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"], lora_scale=0.7)
    pipeline.unload_lora_weights()
    fused = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(path, 0.7)])
    for part, layer in factors:
        torch.testing.assert_close(
            weight_of(networks(fused)[part], layer), weight_of(getattr(pipeline, part), layer), rtol=1e-5, atol=1e-6
        )


@pytest.fixture(scope="module")
def style(factors, tmp_path_factory):
    return write(tmp_path_factory.mktemp("lora") / "style.safetensors", kohya(factors))


def test_several_files_add_up_and_paint_otherwise(diffusion_weights, pristine, factors, style):
    twice = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(style, 1.5), (style, -0.5)])
    once = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(style, 1.0)])
    job = make_job(num_inference_steps=2)
    (a,), (b,), (own,) = run(twice, job), run(once, job), run(pristine, job)
    assert relative(a, b) <= 1e-4
    assert relative(own, b) > 0.01


@pytest.mark.parametrize(("dtype", "level"), [(torch.float16, "INFO"), (torch.bfloat16, "WARNING")])
def test_the_sum_is_rounded_once_and_what_that_takes_is_told(
    diffusion_weights, pristine, factors, style, dtype, level, caplog
):
    caplog.set_level(logging.INFO, "instantid.models.sdxl.lora")
    fused = SdxlModel.load(diffusion_weights, CPU, dtype, loras=[(style, 0.2)])
    lost = effect = 0.0
    for part, layer, expected in by_formula(pristine, factors, dict.fromkeys(factors, ALPHA / RANK), 0.2):
        found, before = weight_of(networks(fused)[part], layer), weight_of(networks(pristine)[part], layer)
        assert found.dtype == dtype
        assert float((found.double() - expected).abs().max()) <= float(expected.abs().max()) * torch.finfo(dtype).eps
        change = expected - before
        lost += float((found.double() - before.to(dtype).double() - change).square().sum())
        effect += float(change.square().sum())
    (record,) = caplog.records
    assert record.levelname == level
    assert record.args[1] == pytest.approx(100 * (lost / effect) ** 0.5, rel=1e-3)


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


LINEAR, CONV = f"{ATTENTION}.attn2.to_k", "up_blocks.0.resnets.1.conv1"
ORIGINAL = "output_blocks_1_0_in_layers_2"


def kohya_name(layer):
    return f"lora_unet_{layer.replace('.', '_')}"


def changed(weights, pristine, tensors, folder, layer, weight=1.0, parameter="weight"):
    """What one file does to one layer of the UNet."""
    path = write(folder / "one.safetensors", tensors)
    fused = SdxlModel.load(weights, CPU, torch.float32, loras=[(path, weight)])
    after, before = (model.networks.unet.get_submodule(layer).get_parameter(parameter) for model in (fused, pristine))
    return after.double(), before.double()


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
def test_every_prefix_finds_its_layer(diffusion_weights, pristine, tmp_path, prefix, layer):
    unet = pristine.networks.unet
    original = _unet_name(f"{layer}.weight", unet.config).removesuffix(".weight")
    names = {"layer": layer, "flat": layer.replace(".", "_"), "original": original}
    down_name, up_name = (name.format(**names, flat_original=original.replace(".", "_")) for name in PREFIXES[prefix])
    weight = weight_of(unet, layer)
    up = torch.randn(len(weight), 2, *(1,) * (weight.ndim - 2)) * 0.1
    down = torch.randn(2, *weight.shape[1:])
    after, before = changed(diffusion_weights, pristine, {up_name: up, down_name: down}, tmp_path, layer)
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
def test_one_layer_of_a_text_encoder(diffusion_weights, pristine, tmp_path, case, alpha):
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
    expected = weight_of(networks(pristine)[part], place) + scale * up @ down
    torch.testing.assert_close(weight_of(networks(fused)[part], place), expected, rtol=1e-5, atol=1e-6)


def test_diffusers_old_names_of_attention_processors(diffusion_weights, pristine, tmp_path):
    factors = {"up": torch.randn(64, 2) * 0.1, "down": torch.randn(2, 64)}
    layer = f"{ATTENTION}.attn1.to_out.0"
    tensors = {f"unet.{ATTENTION}.attn1.processor.to_out_lora.{k}.weight": v for k, v in factors.items()}
    after, before = changed(diffusion_weights, pristine, tensors, tmp_path, layer)
    torch.testing.assert_close(after, before + factors["up"].double() @ factors["down"].double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("stabilised", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_peft_writes_alpha_beside_the_file(diffusion_weights, pristine, tmp_path, stabilised, scale):
    """`save_pretrained` of peft itself, and its own merged weight (arXiv 2312.03732 for the root)."""
    peft = pytest.importorskip("peft")
    unet = diffusers.UNet2DConditionModel.from_pretrained(diffusion_weights / "sdxl" / "unet")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[LINEAR], use_rslora=stabilised, init_lora_weights=False)
    adapted = peft.get_peft_model(unet, config)
    adapted.save_pretrained(tmp_path)
    fused = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(tmp_path / "adapter_model.safetensors", 1.0)])
    expected = adapted.merge_and_unload().get_submodule(LINEAR).weight
    found, before = weight_of(fused.networks.unet, LINEAR), weight_of(pristine.networks.unet, LINEAR)
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
def test_lycoris_forms_are_peft_s(diffusion_weights, pristine, tmp_path, form, layer):
    kind, options = LYCORIS[form]
    torch.manual_seed(3)
    unet = diffusers.UNet2DConditionModel.from_pretrained(diffusion_weights / "sdxl" / "unet")
    parts, delta = by_peft(kind, layer, unet, **options)
    tensors = {f"{kohya_name(layer)}.{name}": value for name, value in parts.items()}
    tensors[f"{kohya_name(layer)}.alpha"] = torch.tensor(2.0)
    after, before = changed(diffusion_weights, pristine, tensors, tmp_path, layer, 0.5)
    assert float(delta.abs().max()) > 1e-3
    torch.testing.assert_close(after, before + 0.5 * delta.double(), rtol=1e-5, atol=1e-6)


def test_lokr_of_two_whole_factors_knows_no_alpha(diffusion_weights, pristine, tmp_path):
    first, second = torch.randn(4, 8), torch.randn(16, 8) * 0.1
    name = kohya_name(f"{ATTENTION}.attn1.to_q")
    tensors = {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second, f"{name}.alpha": torch.tensor(1e10)}
    after, before = changed(diffusion_weights, pristine, tensors, tmp_path, f"{ATTENTION}.attn1.to_q")
    expected = torch.einsum("ab,cd->acbd", first.double(), second.double()).reshape(64, 64)
    torch.testing.assert_close(after, before + expected, rtol=1e-6, atol=1e-6)


def test_locon_with_a_middle_factor_is_a_chain_of_convolutions(diffusion_weights, pristine, tmp_path):
    """Its change applied to an input is `up(mid(down(input)))`."""
    weight = weight_of(pristine.networks.unet, CONV)
    down, mid, up = torch.randn(2, weight.shape[1], 1, 1), torch.randn(2, 2, 3, 3), torch.randn(len(weight), 2, 1, 1)
    tensors = {f"lora_unet_{ORIGINAL}.lora_{k}.weight": t for k, t in (("down", down), ("mid", mid), ("up", up))}
    after, before = changed(diffusion_weights, pristine, tensors, tmp_path, CONV)
    picture = torch.randn(1, weight.shape[1], 6, 6).double()
    chain = torch.conv2d(torch.conv2d(torch.conv2d(picture, down.double()), mid.double()), up.double())
    torch.testing.assert_close(torch.conv2d(picture, after - before), chain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_dora_of_peft(diffusion_weights, pristine, tmp_path, layer):
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
    assert relative(expected, weight_of(pristine.networks.unet, layer)) > 0.1
    torch.testing.assert_close(weight_of(fused.networks.unet, layer), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_input", [True, False])
@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_dora_of_lycoris_keeps_the_trained_norms(diffusion_weights, pristine, tmp_path, layer, by_input):
    """Older files scale each input (`dora_scale` [1, in, ...]), newer ones each output ([out, 1, ...])."""
    weight = weight_of(pristine.networks.unet, layer)
    axis = 1 if by_input else 0
    scale = (torch.rand(weight.shape[axis]) + 0.5).reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    up, down = torch.randn(len(weight), 2, *(1,) * (weight.ndim - 2)), torch.randn(2, *weight.shape[1:])
    name = kohya_name(layer)
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.dora_scale": scale}
    tensors[f"{name}.alpha"] = torch.tensor(1.0)
    after, before = changed(diffusion_weights, pristine, tensors, tmp_path, layer, 0.25)
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
def test_whole_differences_are_added(diffusion_weights, pristine, tmp_path, layer, ending, parameter):
    difference = torch.randn_like(pristine.networks.unet.get_submodule(layer).get_parameter(parameter))
    tensors = {f"{kohya_name(layer)}.{ending}": difference}
    after, before = changed(diffusion_weights, pristine, tensors, tmp_path, layer, -0.5, parameter)
    torch.testing.assert_close(after, before - 0.5 * difference.double(), rtol=1e-6, atol=1e-6)


def pair(layer, down=(3, 64), up=(64, 3), value=0.0):
    return {f"{layer}.lora_{k}.weight": torch.full(s, value) for k, s in (("A", down), ("B", up))}


QUERY = f"unet.{ATTENTION}.attn1.to_q"
KOHYA_QUERY = f"lora_unet_{ATTENTION.replace('.', '_')}_attn1_to_q"
FAULTS = {
    "no LoRA": ({"conv_in.weight": torch.zeros(2, 2)}, "not a LoRA for SDXL: conv_in.weight and 0 more"),
    "nothing": ({}, "it is empty"),
    "half a pair": ({f"{QUERY}.lora_A.weight": torch.zeros(3, 64)}, "attn1.to_q (down) does not fit"),
    "another model": (pair("unet.blocks.7.to_q"), "unet.blocks.7.to_q and 0 more are no layers of this checkpoint"),
    "another width": (pair(QUERY, down=(3, 65)), "attn1.to_q (down, up) does not fit"),
    "transposed": (pair(f"unet.{ATTENTION}.ff.net.0.proj", (3, 512), (64, 3)), "ff.net.0.proj (down, up) does not fit"),
    "a bias where there is none": ({f"{KOHYA_QUERY}.diff_b": torch.zeros(64)}, "does not fit the checkpoint's bias"),
    "two layouts at once": (
        pair(QUERY) | pair("diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q"),
        "names some layers twice",
    ),
    "biases": (pair(QUERY) | {f"{QUERY}.lora_B.bias": torch.zeros(64)}, "a LoRA of biases, which cannot be fused"),
    "several alphas": (pair(QUERY) | {f"{QUERY}.alpha": torch.ones(3)}, "attn1.to_q (alpha, down, up) does not fit"),
    "OFT": ({f"{KOHYA_QUERY}.oft_blocks": torch.zeros(4, 16, 16)}, "OFT, which cannot be fused"),
    "OFT of LyCORIS": ({f"{KOHYA_QUERY}.oft_diag": torch.zeros(4, 16)}, "OFT, which cannot be fused"),
    "IA3": ({f"{KOHYA_QUERY}.on_input": torch.zeros(1), f"{KOHYA_QUERY}.weight": torch.zeros(64)}, "IA3, which"),
    "GLoRA": ({f"{KOHYA_QUERY}.{k}.weight": torch.zeros(4, 4) for k in ("a1", "a2", "b1", "b2")}, "GLoRA, which"),
    "embedding": ({"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 64)}, "a textual inversion embedding"),
    "FLUX": (pair("transformer.single_transformer_blocks.0.attn.to_q"), "a LoRA for FLUX or Stable Diffusion 3"),
    "checkpoint": ({"first_stage_model.encoder.conv_in.weight": torch.zeros(1)}, "a whole checkpoint"),
    "not finite": (pair(QUERY, value=torch.inf), "does not fit torch.float32"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_files_are_refused(diffusion_weights, tmp_path, fault):
    tensors, message = FAULTS[fault]
    path = write(tmp_path / "odd.safetensors", tensors)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(path, 1.0)])
    assert str(path) in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 200
    assert "\n" not in str(error.value)


def few_step_profile(mode):
    return replace(MINIATURE, **FEW_STEPS[mode])


def test_a_file_that_is_missing_is_named(diffusion_weights):
    with pytest.raises(FileNotFoundError, match=r"lora/lcm\.safetensors"):
        SdxlModel.load(diffusion_weights, CPU, torch.float32, profile=few_step_profile("lcm"))


def test_hyper_fuses_its_file_and_spaces_timesteps_from_the_end(diffusion_weights, style, tmp_path):
    weights = Path(shutil.copytree(diffusion_weights, tmp_path / "set"))
    (weights / "lora").mkdir()
    shutil.copy(style, weights / "lora" / "hyper.safetensors")
    hyper = SdxlModel.load(weights, CPU, torch.float32, profile=few_step_profile("hyper"))
    job = make_job(scheduler="ddim", num_inference_steps=8)
    config = diffusers.DDIMScheduler.load_config(weights / "sdxl" / "scheduler")
    expected = diffusers.DDIMScheduler.from_config(config, timestep_spacing="trailing")
    expected.set_timesteps(8)
    assert [int(t) for t in hyper.start(*job).schedule.timesteps] == expected.timesteps.tolist()
    assert expected.timesteps[0] == 999
    by_hand = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(style, 1.0)])
    layer = UNET_LAYERS[0]
    assert torch.equal(weight_of(hyper.networks.unet, layer), weight_of(by_hand.networks.unet, layer))


def test_settings_read_files_and_weights(monkeypatch):
    monkeypatch.setenv("INSTANTID_WEIGHTS", "w")
    assert Settings().lora == ()
    monkeypatch.setenv("INSTANTID_LORA", "a b.safetensors:0.65, /c/d.safetensors,e.safetensors:-1")
    assert Settings().lora == (
        (Path("a b.safetensors"), 0.65), (Path("/c/d.safetensors"), 1.0), (Path("e.safetensors"), -1.0),
    )  # fmt: skip
    for wrong in ("a.bin", "a.safetensors:x", "a.safetensors:", "a.safetensors,,b.safetensors", "a.safetensors:nan",
                  "a.safetensors:1e999", "a.safetensors:1_0", '"a, b".safetensors, c'):  # fmt: skip
        monkeypatch.setenv("INSTANTID_LORA", wrong)
        with pytest.raises(ValidationError, match="lora"):
            Settings()


GRAMMAR = {
    "a.safetensors: 0.6": ("a.safetensors", 0.6),
    "a.safetensors :.5": ("a.safetensors", 0.5),
    "a.safetensors:+0.5": ("a.safetensors", 0.5),
    "a.safetensors:1e-1": ("a.safetensors", 0.1),
    "a.safetensors:-2.": ("a.safetensors", -2.0),
    "A.SAFETENSORS:0.5": ("A.SAFETENSORS", 0.5),
    '"a, b.safetensors"': ("a, b.safetensors", 1.0),
    '"a, b.safetensors": 0.5': ("a, b.safetensors", 0.5),
    '"a, ""b"".safetensors:0.5"': ('a, "b".safetensors', 0.5),
    "a:0.3.safetensors:0.5": ("a:0.3.safetensors", 0.5),
}


@pytest.mark.parametrize("text", GRAMMAR)
def test_the_grammar_of_lora_files(monkeypatch, text):
    monkeypatch.setenv("INSTANTID_WEIGHTS", "w")
    path, weight = GRAMMAR[text]
    monkeypatch.setenv("INSTANTID_LORA", f"first.safetensors,{text} , last.safetensors")
    assert Settings().lora == ((Path("first.safetensors"), 1.0), (Path(path), weight), (Path("last.safetensors"), 1.0))
