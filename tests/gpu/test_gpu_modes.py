"""Modes of `bench/gpu_modes.py` on a CUDA device: each gives what plain eager gives, in any order of requests."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from instantid.models.sdxl import Job, SdxlDenoiser
from instantid.request import GenerationRequest
from miniature.sdxl import write_adapter, write_identitynet, write_sdxl

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PATH = Path(__file__).parents[2] / "bench" / "gpu_modes.py"
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def modes():
    spec = importlib.util.spec_from_file_location("gpu_modes", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_modes"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_sdxl(folder / "sdxl")
    write_identitynet(folder / "identitynet")
    write_adapter(folder / "adapter")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return SdxlDenoiser.load(folder, CUDA, torch.float32)


def make_job(number, **changes):
    rng = np.random.default_rng(number)
    fields = {
        "prompt": f"a portrait {number}", "negative_prompt": "", "width": 128, "height": 64,
        "num_inference_steps": 6, "guidance_scale": 5.0, "ip_adapter_scale": 0.8,
        "controlnet_conditioning_scale": 0.8, "control_guidance_start": 0.0, "control_guidance_end": 0.7,
        "scheduler": "euler", "num_images_per_prompt": 1, "seed": number, "output_format": "png",
        "output_quality": 95,
    }  # fmt: skip
    request = GenerationRequest(**{**fields, **changes})
    picture = rng.integers(0, 256, (request.height, request.width, 3)).astype(np.uint8)
    return Job(request, rng.normal(size=512).astype(np.float32), picture)


JOBS = (
    make_job(1),
    make_job(2, guidance_scale=1.0, scheduler="ddim"),
    make_job(3, scheduler="heun", num_images_per_prompt=2),
    make_job(4, width=64, scheduler="lcm", guidance_scale=1.0),
)


def latents(denoiser):
    """Alone; two in turn, one step each; three in one batch that they leave one by one."""
    first, second, third = (denoiser.start(job) for job in JOBS[:3])
    while first.steps_left:
        denoiser.step([first])
        denoiser.step([second])
    finish(denoiser, third)
    batch = [denoiser.start(job) for job in JOBS[:3]]
    while active := [state for state in batch if state.steps_left]:
        denoiser.step(active)
    small = finish(denoiser, denoiser.start(JOBS[3]))
    return [state.latents.clone() for state in (first, second, third, *batch, small)]


def finish(denoiser, state):
    while state.steps_left:
        denoiser.step([state])
    return state


@pytest.mark.parametrize("name", ["channels_last", "graphs", "compiled", "compiled_graphs"])
def test_a_mode_changes_rounding_only(denoiser, modes, name):
    modes.use(denoiser, modes.BY_NAME["eager"])
    expected = latents(denoiser)
    modes.use(denoiser, modes.BY_NAME[name])
    for found, plain in zip(latents(denoiser), expected, strict=True):
        assert float((found - plain).abs().max() / plain.abs().max()) <= 1e-3


def test_two_requests_in_turn_do_not_see_each_other_s_rows(denoiser, modes):
    modes.use(denoiser, modes.BY_NAME["graphs"])
    first, second, alone = (denoiser.start(JOBS[i]) for i in (0, 0, 0))
    second.inputs = denoiser.start(make_job(9)).inputs
    finish(denoiser, alone)
    while first.steps_left:
        denoiser.step([second])
        denoiser.step([first])
    assert torch.equal(first.latents, alone.latents)
    assert not torch.equal(second.latents, alone.latents)
