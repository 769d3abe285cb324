"""The serving path on a CUDA device: every way to run the networks gives what plain eager gives.

Needs torch, diffusers, transformers and this repository on PYTHONPATH: `make test-gpu`.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from build_tools.compiler import compile_missing
from instantid.engine import Admission, Answer, Engine, Policy, Task
from instantid.errors import EngineFailure, Overloaded
from instantid.models import measure
from instantid.models.compiled import load_compiled
from instantid.models.predict import EXECUTIONS
from instantid.models.sdxl import RequestTensors, SdxlModel
from instantid.models.setup import capture_graphs, use_as_compiled
from instantid.profile import Profile
from instantid.request import GenerationRequest
from miniature.sdxl import write_adapter, write_identitynet, write_sdxl

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")
SIZE = (64, 128)
SHAPES = [(SIZE, rows) for rows in (1, 2, 4, 7)]
PROFILE = Profile("toy", native_area=128 * 128, min_side=64, max_side=256, max_area=256 * 256)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_sdxl(folder / "sdxl")
    write_identitynet(folder / "identitynet")
    write_adapter(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def model(weights):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return SdxlModel.load(weights, CUDA, torch.float32)


def make_job(number, **changes):
    rng = np.random.default_rng(number)
    fields = {"width": 128, "height": 64, "num_inference_steps": 6, "control_guidance_end": 0.7, "seed": number}
    request = GenerationRequest(prompt=f"a portrait {number}", **{**fields, **changes})
    pictures = rng.integers(0, 256, (1, request.height, request.width, 3)).astype(np.uint8)
    return request, RequestTensors(rng.normal(size=(1, 512)).astype(np.float32), pictures)


JOBS = (
    make_job(1),
    make_job(2, guidance_scale=1.0, scheduler="ddim"),
    make_job(3, scheduler="heun", num_images_per_prompt=2),
    make_job(4, width=64, scheduler="lcm", guidance_scale=1.0),
)


def left(state):
    return len(state.timesteps) - state.index


def step(model, *states):
    return model.work("step", states).wait()


def finish(model, state):
    while left(state):
        step(model, state)
    return state


def latents(model):
    """Alone; two in turn, one step each; three in one batch that they leave one by one."""
    first, second, third = (model.start(*job) for job in JOBS[:3])
    while left(first):
        step(model, first)
        step(model, second)
    finish(model, third)
    batch = [model.start(*job) for job in JOBS[:3]]
    while active := [state for state in batch if left(state)]:
        step(model, *active)
    small = finish(model, model.start(*JOBS[3]))
    return [state.latents.clone() for state in (first, second, third, *batch, small)]


@pytest.fixture(scope="module")
def eager(model):
    model.use(EXECUTIONS["eager"])
    return latents(model)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", EXECUTIONS)
def test_a_way_to_run_changes_rounding_only(model, eager, name, graphs):
    model.use(EXECUTIONS[name])
    if graphs:
        capture_graphs(model, SHAPES)
        assert len(model.denoise.predictor.prepared) == len(SHAPES)
    for found, plain in zip(latents(model), eager, strict=True):
        assert float((found - plain).abs().max() / plain.abs().max()) <= 1e-3


def test_packages_compiled_ahead_change_rounding_only(model, eager, tmp_path):
    use_as_compiled(model)
    assert [was_there for _, was_there in compile_missing(model, tmp_path, SHAPES[:1])] == [False]
    load_compiled(model, tmp_path, SHAPES[:1])
    assert len(model.denoise.predictor.prepared) == 1
    for found, plain in zip(latents(model), eager, strict=True):
        assert float((found - plain).abs().max() / plain.abs().max()) <= 1e-3


def test_two_requests_in_turn_do_not_see_each_other_s_rows(model):
    model.use(EXECUTIONS["channels_last"])
    capture_graphs(model, SHAPES)
    first, second, alone = (model.start(*JOBS[i]) for i in (0, 0, 0))
    second.conditions = model.start(*make_job(9)).conditions
    finish(model, alone)
    while left(first):
        step(model, second)
        step(model, first)
    assert torch.equal(first.latents, alone.latents)
    assert not torch.equal(second.latents, alone.latents)


def test_latents_that_are_not_finite_fail_their_own_request_one_unit_later(model):
    sick, well = model.start(*JOBS[0]), model.start(*JOBS[1])
    sick.latents = torch.full_like(sick.latents, torch.nan)
    unit = model.work("step", [sick, well])
    assert sick.failure is None
    assert not unit.done
    assert unit.wait() > 0
    assert isinstance(sick.failure, EngineFailure)
    assert well.failure is None


def test_memory_that_does_not_suffice_costs_the_request_and_is_given_back(model):
    huge = replace(JOBS[0][0], width=4096, height=4096, num_images_per_prompt=4)
    given = RequestTensors(JOBS[0][1].embeddings, np.zeros((1, 4096, 4096, 3), np.uint8))
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(Overloaded, match="device memory"):
            finish(model, model.start(huge, given))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    finish(model, model.start(*JOBS[0]))


def test_the_engine_paints_the_same_pictures_with_units_in_flight(model):
    """The pipelined engine on the device against each request alone."""
    model.use(EXECUTIONS["channels_last"])
    costs = measure.measure_costs(model, [SIZE], [1, 2, 4])
    heard = {}

    def answer(number):
        return Answer(lambda outcome: heard.update({number: outcome}))

    engine = Engine(
        model, Policy(costs, 16), Admission(64), lambda task: [picture.numpy() for picture in task.state.pictures]
    )
    jobs = {n: make_job(n, num_images_per_prompt=1 + n % 2) for n in range(6)}
    engine.submit([Task(*job, model.plan(job[0]), answer(n)) for n, job in jobs.items()])
    while engine.admission.tasks:
        engine.step()
    engine.close()
    for n, job in jobs.items():
        state = finish(model, model.start(*job))
        for i in range(job[0].num_images_per_prompt):
            model.work("decode", [state]).wait()
            off = np.abs(heard[n][i].astype(int) - state.pictures[i].numpy())
            assert off.max() <= 2
            assert (off > 1).mean() <= 1e-3


def test_the_fastest_way_is_measured_and_costs_are_of_the_device(model):
    assert measure.use_fastest_execution(model, SIZE) in EXECUTIONS
    table = measure.measure_costs(model, [SIZE], [1, 2])
    assert all(seconds > 0 for points in table.measured.values() for _, seconds in points)
