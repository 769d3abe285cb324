"""LoRA files in every naming, against the formula and against diffusers' own loading and fusing."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from build_tools.weights import MINIATURE
from instantid.models.sdxl import SdxlModel
from instantid.profile import FEW_STEPS

from .diffusing import make_job, relative, run
from .lora_files import (
    ALPHA,
    ATTENTION,
    CPU,
    KOHYA,
    RANK,
    TEXT_LAYERS,
    UNET_LAYERS,
    kohya,
    networks,
    original_names,
    peft,
    weight_of,
    write,
)


@pytest.fixture(scope="module")
def factors(model):
    """Layer to up and down; layers by diffusers' names, with `text_model.` in the text encoders'."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for part, network in networks(model).items():
        for layer in UNET_LAYERS if part == "unet" else TEXT_LAYERS:
            weight = weight_of(network, layer)
            up = torch.randn(len(weight), RANK, *(1,) * (weight.ndim - 2), generator=generator)
            found[part, layer] = 0.1 * up, torch.randn(RANK, *weight.shape[1:], generator=generator) * 0.2
    return found


@pytest.fixture(scope="module")
def style(factors, tmp_path_factory):
    return write(tmp_path_factory.mktemp("lora") / "style.safetensors", kohya(factors))


NAMINGS = ("kohya", "kohya, original names", "peft", "peft with alphas")


@pytest.fixture(scope="module", params=NAMINGS)
def file(request, factors, model, tmp_path_factory):
    """A file, and what its factors are multiplied by, layer by layer."""
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    scales = dict.fromkeys(factors, ALPHA / RANK)
    if request.param == "kohya":
        write(path, kohya(factors))
    elif request.param == "kohya, original names":
        write(path, kohya(factors, original_names(model.networks.unet)))
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


def by_formula(model, factors, scales, weight=1.0):
    """`W + weight * alpha / rank * up @ down` in float64."""
    for (part, layer), (up, down) in factors.items():
        product = torch.einsum("or,ri...->oi...", up.double().flatten(1), down.double())
        yield part, layer, weight_of(networks(model)[part], layer).double() + weight * scales[part, layer] * product


def test_every_naming_is_the_formula(diffusion_weights, model, factors, file):
    path, scales = file
    fused = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(path, 0.7)])
    for part, layer, expected in by_formula(model, factors, scales, 0.7):
        torch.testing.assert_close(
            weight_of(networks(fused)[part], layer).double(), expected, rtol=1e-6, atol=1e-6, msg=f"{part}.{layer}"
        )
    other = f"{ATTENTION}.attn1.to_k"
    assert torch.equal(weight_of(fused.networks.unet, other), weight_of(model.networks.unet, other))


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


def test_several_files_add_up_and_paint_otherwise(diffusion_weights, model, factors, style):
    twice = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(style, 1.5), (style, -0.5)])
    once = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(style, 1.0)])
    job = make_job(num_inference_steps=2)
    (a,), (b,), (own,) = run(twice, job), run(once, job), run(model, job)
    assert relative(a, b) <= 1e-4
    assert relative(own, b) > 0.01


@pytest.mark.parametrize(("dtype", "level"), [(torch.float16, "INFO"), (torch.bfloat16, "WARNING")])
def test_the_sum_is_rounded_once_and_what_that_takes_is_told(
    diffusion_weights, model, factors, style, dtype, level, caplog
):
    caplog.set_level(logging.INFO, "instantid.models.sdxl.lora")
    fused = SdxlModel.load(diffusion_weights, CPU, dtype, loras=[(style, 0.2)])
    lost = effect = 0.0
    for part, layer, expected in by_formula(model, factors, dict.fromkeys(factors, ALPHA / RANK), 0.2):
        found, before = weight_of(networks(fused)[part], layer), weight_of(networks(model)[part], layer)
        assert found.dtype == dtype
        assert float((found.double() - expected).abs().max()) <= float(expected.abs().max()) * torch.finfo(dtype).eps
        change = expected - before
        lost += float((found.double() - before.to(dtype).double() - change).square().sum())
        effect += float(change.square().sum())
    (record,) = caplog.records
    assert record.levelname == level
    assert record.args[1] == pytest.approx(100 * (lost / effect) ** 0.5, rel=1e-3)


def test_a_file_that_is_missing_is_named(diffusion_weights):
    with pytest.raises(FileNotFoundError, match=r"lora/lcm\.safetensors"):
        SdxlModel.load(diffusion_weights, CPU, torch.float32, profile=replace(MINIATURE, **FEW_STEPS["lcm"]))


def test_hyper_fuses_its_file_and_spaces_timesteps_from_the_end(diffusion_weights, style, tmp_path):
    weights = Path(shutil.copytree(diffusion_weights, tmp_path / "set"))
    (weights / "lora").mkdir()
    shutil.copy(style, weights / "lora" / "hyper.safetensors")
    hyper = SdxlModel.load(weights, CPU, torch.float32, profile=replace(MINIATURE, **FEW_STEPS["hyper"]))
    job = make_job(scheduler="ddim", num_inference_steps=8)
    config = diffusers.DDIMScheduler.load_config(weights / "sdxl" / "scheduler")
    expected = diffusers.DDIMScheduler.from_config(config, timestep_spacing="trailing")
    expected.set_timesteps(8)
    assert [int(t) for t in hyper.start(*job).schedule.timesteps] == expected.timesteps.tolist()
    assert expected.timesteps[0] == 999
    by_hand = SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(style, 1.0)])
    layer = UNET_LAYERS[0]
    assert torch.equal(weight_of(hyper.networks.unet, layer), weight_of(by_hand.networks.unet, layer))
