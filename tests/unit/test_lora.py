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
from safetensors.torch import save_file
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
    for wrong in ("a.bin", "a.safetensors:x", "a.safetensors:", "a.safetensors,,b.safetensors", "a.safetensors:nan"):
        monkeypatch.setenv("INSTANTID_LORA", wrong)
        with pytest.raises(ValidationError, match="lora"):
            Settings()
