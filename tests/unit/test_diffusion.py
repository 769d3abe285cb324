"""The denoising path against plain re-computations and diffusers' own pipeline, on weights of toy size."""

import numpy as np
import pytest
import torch

from instantid import contract
from instantid.errors import EngineFailure
from instantid.models.sdxl.decode import to_uint8
from instantid.models.sdxl.schedules import Schedule, control_window, count_steps
from miniature.sdxl import SCHEDULER

from .diffusing import WORDS, make_job, random_job, relative, run, steps_left
from .reference import SCHEDULERS, plain_resampler


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(i, marks=pytest.mark.long) for i in range(8, 56))])
def test_a_request_alone_is_the_reference_s(model, reference, seed):
    job = random_job(seed)
    (found,) = run(model, job)
    expected = reference.latents(job[0], job[1].embeddings[0], job[1].pictures[0], job[0].seed)
    assert relative(found, expected) <= 1e-3


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_a_request_in_any_batch_is_as_alone(model, seed):
    jobs = [random_job(100 * seed + i, size=(64, 128)) for i in range(8)]
    for together, job in zip(run(model, *jobs), jobs, strict=True):
        assert relative(together, run(model, job)[0]) <= 1e-4


def test_requests_join_and_leave_between_steps(model):
    first, second, third = (random_job(i, size=(64, 64)) for i in (2, 3, 10))
    a, b = model.start(*first), model.start(*second)
    model.work("step", [a]).wait()
    model.work("step", [a, b]).wait()
    c = model.start(*third)
    while active := [state for state in (c, b, a) if steps_left(state)]:
        model.work("step", active).wait()
    for state, job in ((a, first), (b, second), (c, third)):
        assert relative(state.latents, run(model, job)[0]) <= 1e-4


def test_the_same_job_twice_is_the_same_to_the_last_bit(model):
    job = make_job(scheduler="euler_ancestral")
    assert torch.equal(run(model, job)[0], run(model, job)[0])


@pytest.mark.parametrize("scheduler", contract.SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_without_face_and_identitynet_it_is_diffusers_sdxl_pipeline(model, reference, scheduler, guidance_scale):
    job = make_job(
        scheduler=scheduler, guidance_scale=guidance_scale, num_inference_steps=5, ip_adapter_scale=0.0,
        controlnet_conditioning_scale=0.0, prompt="a knight", negative_prompt="blurry, low quality", height=128,
    )  # fmt: skip
    (found,) = run(model, job)
    pipeline = reference.pipeline
    pipeline.scheduler = reference.scheduler(scheduler)
    generator = torch.Generator().manual_seed(7)
    picture = torch.zeros(1, 3, 128, 64)
    expected = pipeline(
        "a knight", image=picture, negative_prompt="blurry, low quality", num_inference_steps=5, width=64, height=128,
        guidance_scale=guidance_scale, controlnet_conditioning_scale=0.0, generator=generator, output_type="latent",
    ).images  # fmt: skip
    assert relative(found, expected) <= 1e-4


@pytest.mark.parametrize("text", [*WORDS, "Grüße 世界"])
def test_text_is_diffusers(model, reference, text):
    found = model.networks.text.encode(text)
    embeds, _, pooled, _ = reference.pipeline.encode_prompt(text, do_classifier_free_guidance=False)
    torch.testing.assert_close(found.tokens, embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)


def test_text_is_encoded_once(model):
    text = model.networks.text
    text.encode("encoded once")
    before = text.encode_chunk.cache_info()
    text.encode("encoded once")
    assert text.encode_chunk.cache_info().hits == before.hits + 1
    assert text.encode_chunk.cache_info().misses == before.misses


def test_face_tokens_are_the_plain_resampler_s(model, reference):
    embedding = np.random.default_rng(0).normal(size=512).astype(np.float32) * 20
    found = model.conditions[0].tokens(embedding)[0]
    expected = plain_resampler(reference.image_proj, torch.from_numpy(embedding))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_unconditional_face_tokens_are_those_of_zeros(model, reference):
    expected = plain_resampler(reference.image_proj, torch.zeros(512))
    torch.testing.assert_close(model.conditions[0]._no_face[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral", "lcm"])
def test_pictures_of_one_request_are_those_of_its_seeds(model, scheduler):
    (several,) = run(model, make_job(num_images_per_prompt=3, seed=40, scheduler=scheduler))
    for i in range(3):
        (alone,) = run(model, make_job(seed=40 + i, scheduler=scheduler))
        assert relative(several[i : i + 1], alone) <= 1e-4


def test_pictures_are_decoded_as_diffusers_does(model, reference):
    state = model.start(*make_job(num_inference_steps=3))
    for _ in range(3):
        model.work("step", [state]).wait()
    model.work("decode", [state]).wait()
    picture = state.pictures[0].numpy()
    with torch.no_grad():
        decoded = reference.vae.decode(state.latents / reference.vae.config.scaling_factor).sample
    expected = np.asarray(reference.pipeline.image_processor.postprocess(decoded, output_type="pil")[0])
    assert np.abs(picture.astype(int) - expected).max() <= 1
    assert picture.dtype == np.uint8


def test_rounding_is_to_the_nearest():
    values = torch.tensor([-2.0, -1.0, 2 * 0.4 / 255 - 1, 2 * 0.6 / 255 - 1, 1.0, 3.0])
    assert to_uint8(values.view(1, 1, 6)).flatten().tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("scheduler", contract.SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_schedules_have_the_steps_they_say(model, scheduler, steps):
    state = model.start(*make_job(scheduler=scheduler, num_inference_steps=steps))
    assert steps_left(state) == count_steps(scheduler, steps)


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


def test_identitynet_rests_outside_its_window(model, monkeypatch):
    calls = []
    forward = model.networks.identitynet.forward
    monkeypatch.setattr(model.networks.identitynet, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    run(model, make_job(num_inference_steps=10, control_guidance_start=0.2, control_guidance_end=0.6))
    assert len(calls) == 4


def test_latents_that_are_not_finite_fail_that_request_alone(model):
    sick, well = (model.start(*make_job(face=i)) for i in (1, 2))
    sick.latents = torch.full_like(sick.latents, torch.nan)
    while steps_left(well):
        model.work("step", [state for state in (sick, well) if state.failure is None]).wait()
    assert isinstance(sick.failure, EngineFailure)
    (alone,) = run(model, make_job(face=2))
    assert relative(well.latents, alone) <= 1e-4
