"""The denoising path against plain re-computations and diffusers' own pipeline, on weights of toy size."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from build_tools.convert import convert_adapter
from instantid import contract
from instantid.errors import EngineFailure
from instantid.models.sdxl import Job, SdxlDenoiser, count_steps
from instantid.models.sdxl.model import to_uint8
from instantid.models.sdxl.schedules import Schedule, control_window
from instantid.request import GenerationRequest
from miniature.sdxl import SCHEDULER

from .reference import SCHEDULERS, Reference, plain_resampler

WORDS = ("a portrait", "a knight in a garden", "watercolor, soft light", "", "queen of snow, stars, night")


def make_request(**changes):
    fields = {
        "prompt": "a portrait", "negative_prompt": "", "width": 64, "height": 64, "num_inference_steps": 4,
        "guidance_scale": 5.0, "ip_adapter_scale": 0.8, "controlnet_conditioning_scale": 0.8,
        "control_guidance_start": 0.0, "control_guidance_end": 1.0, "scheduler": "euler",
        "num_images_per_prompt": 1, "seed": 7, "output_format": "png", "output_quality": 95,
    }  # fmt: skip
    return GenerationRequest(**{**fields, **changes})


def make_job(face=0, **changes):
    rng = np.random.default_rng(face)
    request = make_request(**changes)
    picture = rng.integers(0, 256, (request.height, request.width, 3)).astype(np.uint8)
    return Job(request, (rng.normal(size=512) * 1.3).astype(np.float32), picture)


def random_job(seed, size=None):
    rng = np.random.default_rng(1000 + seed)
    scheduler = contract.SCHEDULERS[seed % len(contract.SCHEDULERS)]
    start = float(rng.choice([0.0, 0.0, 0.2]))
    width, height = size or rng.choice([64, 128], 2)
    return make_job(
        seed,
        prompt=str(rng.choice(WORDS)) or "x",
        negative_prompt=str(rng.choice(WORDS)),
        width=int(width),
        height=int(height),
        num_inference_steps=int(rng.integers(1, 31)),
        guidance_scale=float(rng.choice([1.0, 2.5, 5.0, 9.0])),
        ip_adapter_scale=float(rng.uniform(0, 1.5)),
        controlnet_conditioning_scale=float(rng.uniform(0, 1.5)),
        control_guidance_start=start,
        control_guidance_end=float(rng.choice([0.6, 1.0])),
        scheduler=scheduler,
        seed=int(rng.integers(0, 2**40)),
    )


@pytest.fixture(scope="session")
def denoiser(diffusion_weights):
    return SdxlDenoiser.load(diffusion_weights, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def reference(diffusion_weights):
    return Reference(diffusion_weights)


def run(denoiser, *jobs):
    """Final latents of jobs that share steps for as long as each has one left."""
    states = [denoiser.start(job) for job in jobs]
    while active := [state for state in states if state.steps_left]:
        denoiser.step(active)
    assert all(state.failure is None for state in states)
    return [state.latents for state in states]


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(i, marks=pytest.mark.long) for i in range(8, 56))])
def test_a_request_alone_is_the_reference_s(denoiser, reference, seed):
    job = random_job(seed)
    (found,) = run(denoiser, job)
    expected = reference.latents(*job, job.request.seed)
    assert relative(found, expected) <= 1e-3


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_a_request_in_any_batch_is_as_alone(denoiser, seed):
    jobs = [random_job(100 * seed + i, size=(64, 128)) for i in range(8)]
    for together, job in zip(run(denoiser, *jobs), jobs, strict=True):
        assert relative(together, run(denoiser, job)[0]) <= 1e-4


def test_requests_join_and_leave_between_steps(denoiser):
    first, second, third = (random_job(i, size=(64, 64)) for i in (2, 3, 10))
    a, b = denoiser.start(first), denoiser.start(second)
    denoiser.step([a])
    denoiser.step([a, b])
    c = denoiser.start(third)
    while active := [state for state in (c, b, a) if state.steps_left]:
        denoiser.step(active)
    for state, job in ((a, first), (b, second), (c, third)):
        assert relative(state.latents, run(denoiser, job)[0]) <= 1e-4


def test_the_same_job_twice_is_the_same_to_the_last_bit(denoiser):
    job = make_job(scheduler="euler_ancestral")
    assert torch.equal(run(denoiser, job)[0], run(denoiser, job)[0])


@pytest.mark.parametrize("scheduler", contract.SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_without_face_and_identitynet_it_is_diffusers_sdxl_pipeline(denoiser, reference, scheduler, guidance_scale):
    job = make_job(
        scheduler=scheduler, guidance_scale=guidance_scale, num_inference_steps=5, ip_adapter_scale=0.0,
        controlnet_conditioning_scale=0.0, prompt="a knight", negative_prompt="blurry, low quality", height=128,
    )  # fmt: skip
    (found,) = run(denoiser, job)
    pipeline = reference.pipeline
    pipeline.scheduler = reference.scheduler(scheduler)
    generator = torch.Generator().manual_seed(7)
    picture = torch.zeros(1, 3, 128, 64)
    expected = pipeline(
        "a knight", image=picture, negative_prompt="blurry, low quality", num_inference_steps=5, width=64, height=128,
        guidance_scale=guidance_scale, controlnet_conditioning_scale=0.0, generator=generator, output_type="latent",
    ).images  # fmt: skip
    assert relative(found, expected) <= 1e-4


@pytest.mark.parametrize("text", [*WORDS, "Grüße 世界 " * 60])
def test_text_is_diffusers(denoiser, reference, text):
    found = denoiser.networks.text.encode(text)
    embeds, _, pooled, _ = reference.pipeline.encode_prompt(text, do_classifier_free_guidance=False)
    torch.testing.assert_close(found.tokens, embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)


def test_text_is_encoded_once(denoiser):
    text = denoiser.networks.text
    text.encode("encoded once")
    before = text.encode.cache_info()
    text.encode("encoded once")
    assert text.encode.cache_info().hits == before.hits + 1
    assert text.encode.cache_info().misses == before.misses


def test_face_tokens_are_the_plain_resampler_s(denoiser, reference):
    embedding = np.random.default_rng(0).normal(size=512).astype(np.float32) * 20
    found = denoiser._face_tokens(embedding)[0]
    expected = plain_resampler(reference.image_proj, torch.from_numpy(embedding))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_unconditional_face_tokens_are_those_of_zeros(denoiser, reference):
    expected = plain_resampler(reference.image_proj, torch.zeros(512))
    torch.testing.assert_close(denoiser._zero_face[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral", "lcm"])
def test_pictures_of_one_request_are_those_of_its_seeds(denoiser, scheduler):
    (several,) = run(denoiser, make_job(num_images_per_prompt=3, seed=40, scheduler=scheduler))
    for i in range(3):
        (alone,) = run(denoiser, make_job(seed=40 + i, scheduler=scheduler))
        assert relative(several[i : i + 1], alone) <= 1e-4


def test_pictures_are_decoded_as_diffusers_does(denoiser, reference):
    state = denoiser.start(make_job(num_inference_steps=3))
    for _ in range(3):
        denoiser.step([state])
    picture = denoiser.decode(state)
    with torch.no_grad():
        decoded = reference.vae.decode(state.latents / reference.vae.config.scaling_factor).sample
    expected = np.asarray(reference.pipeline.image_processor.postprocess(decoded, output_type="pil")[0])
    assert np.abs(picture.astype(int) - expected).max() <= 1
    assert picture.dtype == np.uint8


def test_rounding_is_to_the_nearest():
    values = torch.tensor([-2.0, -1.0, 2 * 0.4 / 255 - 1, 2 * 0.6 / 255 - 1, 1.0, 3.0])
    assert to_uint8(values.view(1, 1, 6)).reshape(-1).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("scheduler", contract.SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_schedules_have_the_steps_they_say(denoiser, scheduler, steps):
    state = denoiser.start(make_job(scheduler=scheduler, num_inference_steps=steps))
    assert state.steps_left == count_steps(scheduler, steps)


def test_a_schedule_leaves_no_trace_in_the_next():
    config = dict(SCHEDULER)
    plain = Schedule("dpmpp_2m", config, 8, torch.device("cpu")).timesteps
    Schedule("dpmpp_2m_karras", config, 8, torch.device("cpu"))
    again = Schedule("dpmpp_2m", config, 8, torch.device("cpu")).timesteps
    assert [int(t) for t in plain] == [int(t) for t in again]
    assert [int(t) for t in Schedule("dpmpp_2m_karras", config, 8, torch.device("cpu")).timesteps] != [
        int(t) for t in plain
    ]


def test_every_scheduler_of_the_contract_is_tested():
    assert set(SCHEDULERS) == set(contract.SCHEDULERS)


def test_window_edges():
    assert control_window(4, 0.25, 0.75) == (0.0, 1.0, 1.0, 0.0)
    assert control_window(5, 0.0, 1.0) == (1.0,) * 5


def test_identitynet_rests_outside_its_window(denoiser, monkeypatch):
    calls = []
    forward = denoiser.networks.identitynet.forward
    monkeypatch.setattr(denoiser.networks.identitynet, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    run(denoiser, make_job(num_inference_steps=10, control_guidance_start=0.2, control_guidance_end=0.6))
    assert len(calls) == 4


def test_latents_that_are_not_finite_fail_that_request_alone(denoiser):
    sick, well = (denoiser.start(make_job(face=i)) for i in (1, 2))
    sick.latents = torch.full_like(sick.latents, torch.nan)
    while well.steps_left:
        denoiser.step([state for state in (sick, well) if state.failure is None])
    assert isinstance(sick.failure, EngineFailure)
    (alone,) = run(denoiser, make_job(face=2))
    assert relative(well.latents, alone) <= 1e-4


def test_adapter_conversion_keeps_names_and_values(tmp_path):
    parts = {
        "image_proj": {"latents": torch.randn(1, 2, 3)},
        "ip_adapter": {"1.to_k_ip.weight": torch.randn(2, 3)},
    }
    torch.save(parts, tmp_path / "ip-adapter.bin")
    convert_adapter(tmp_path / "ip-adapter.bin", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == {"image_proj.latents", "ip_adapter.1.to_k_ip.weight"}
    assert torch.equal(found["image_proj.latents"], parts["image_proj"]["latents"])


def test_adapter_conversion_refuses_other_files(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match="image_proj and ip_adapter"):
        convert_adapter(tmp_path / "other.bin", tmp_path / "out.safetensors")


def copy_weights(source, target):
    shutil.copytree(source, target)
    return target


@pytest.mark.parametrize(
    "part",
    ["sdxl/unet/config.json", "identitynet/config.json", "adapter/ip-adapter.safetensors", "sdxl/tokenizer_2"],
)
def test_a_missing_part_is_named(diffusion_weights, tmp_path, part):
    weights = copy_weights(diffusion_weights, tmp_path / "w")
    (weights / part).rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=part.split("/")[-1]):
        SdxlDenoiser.load(weights, torch.device("cpu"), torch.float32)


def test_an_adapter_for_another_unet_is_refused(diffusion_weights, tmp_path):
    weights = copy_weights(diffusion_weights, tmp_path / "w")
    path = weights / "adapter" / "ip-adapter.safetensors"
    tensors = load_file(path)
    del tensors["ip_adapter.3.to_v_ip.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"ip_adapter\.3\.to_v_ip\.weight and 0 more do not fit"):
        SdxlDenoiser.load(weights, torch.device("cpu"), torch.float32)


def test_a_missing_tensor_is_named(diffusion_weights, tmp_path):
    weights = copy_weights(diffusion_weights, tmp_path / "w")
    path = weights / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys: conv_in.weight"):
        SdxlDenoiser.load(weights, torch.device("cpu"), torch.float32)
