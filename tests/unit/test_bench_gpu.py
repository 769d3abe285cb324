"""What `bench/gpu.py` measures with: its yardstick, its full-size weights, and the script itself at toy size."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from instantid.models.sdxl import SdxlModel

from .diffusing import make_job, relative, run

ROOT = Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(diffusion_weights):
    return SdxlModel.load(diffusion_weights, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def plain(diffusion_weights):
    return load("plain_loop").PlainLoop(diffusion_weights, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_inference_steps": 6, "height": 128},
        {"guidance_scale": 1.0, "ip_adapter_scale": 1.5, "controlnet_conditioning_scale": 0.3},
        {"num_inference_steps": 10, "control_guidance_start": 0.2, "control_guidance_end": 0.6, "seed": 3},
    ],
)
def test_a_request_alone_is_diffusers_pipeline_with_its_own_ip_adapter(model, plain, changes):
    job = make_job(face=5, **changes)
    (found,) = run(model, job)
    assert relative(found, plain.latents(job)) <= 1e-4


def test_the_face_reaches_both_networks_of_the_yardstick(plain):
    job = make_job()
    expected = plain.latents(job)
    request, given = job
    other_face = request, given._replace(embeddings=-given.embeddings)
    assert relative(plain.latents(other_face), expected) > 1e-2
    without_identitynet = make_job(controlnet_conditioning_scale=0.0)
    assert relative(plain.latents(without_identitynet), expected) > 1e-2


@pytest.mark.parametrize("mode", ["channels_last", "flash", pytest.param("compiled", marks=pytest.mark.long)])
def test_modes_change_rounding_only(diffusion_weights, mode):
    modes = load("gpu_modes")
    model = SdxlModel.load(diffusion_weights, torch.device("cpu"), torch.float32)
    jobs = [make_job(face=1), make_job(face=2, guidance_scale=1.0, scheduler="ddim")]
    expected = run(model, *jobs)
    modes.use(model, modes.MODES[mode], [])
    for found, latents in zip(run(model, *jobs), expected, strict=True):
        assert relative(found, latents) <= 1e-4


def test_full_size_networks_are_the_published_ones():
    parameters, work = {}, FlopCounterMode(display=False)
    for folder, network in load("random_full").networks(torch.device("meta")):
        parameters[folder] = sum(p.numel() for p in network.parameters())
        if folder == "sdxl/unet":
            half = {"device": "meta", "dtype": torch.half}
            added = {"text_embeds": torch.empty(1, 1280, **half), "time_ids": torch.empty(1, 6, device="meta")}
            with work:
                network(
                    torch.empty(1, 4, 128, 128, **half), torch.empty(1, device="meta"),
                    torch.empty(1, 77, 2048, **half), added_cond_kwargs=added,
                )  # fmt: skip
    assert parameters == {
        "sdxl/unet": 2_567_463_684,
        "identitynet": 1_251_014_160,
        "sdxl/vae": 83_653_863,
        "sdxl/text_encoder": 123_060_480,
        "sdxl/text_encoder_2": 694_659_840,
    }
    assert work.get_total_flops() / 1e12 == pytest.approx(6.761, abs=1e-3)


@pytest.mark.long
def test_the_script_at_toy_size(tmp_path):
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--toy", "--steps", "2", "--rounds", "1"]
    command += ["--parts", "parity,speed,costs,memory,decode,cold", "--modes", "channels_last"]
    command += ["--weights", str(tmp_path / "w"), "--output", str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500)
    found = json.loads((tmp_path / "gpu_toy.json").read_text())
    assert found["parity"]["float32"] <= 1e-4
    assert found["speed"]["modes"]["channels_last"]["error"] <= 1e-4
    for start in found["cold"]["channels_last"].values():
        assert start["interpreter, torch, diffusers"] > start["read unet"] > 0
        assert start["whole process"] > start["picture, first"] > 0
    assert found["costs"]["channels_last"]["step 64"].keys() == {"1", "2", "4", "8"}
    assert found["decode"]["bfloat16, eager"]["largest_difference"] > 0
    again = subprocess.run([*command, "--resume"], check=True, capture_output=True, text=True, timeout=600)
    assert "parity\n" not in again.stderr
