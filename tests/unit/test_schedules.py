"""Every scheduler with every kind of checkpoint: as diffusers paints with a right configuration, and towards the truth.

The right configuration is written in `reference.py`, from the samplers' definitions and not from our table."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from instantid import contract
from instantid.errors import InvalidArgument
from instantid.models.sdxl.schedules import (
    CLASSES,
    SAMPLING,
    TRAINING,
    Schedule,
    check_steps,
    count_steps,
    fewest_steps,
    training,
)
from miniature.sdxl import SCHEDULER

from .diffusing import relative
from .painting import (
    CPU,
    KINDS,
    SHAPE,
    SPACINGS,
    STOCHASTIC,
    Gaussian,
    paint,
    paint_gaussian,
    paint_with_diffusers,
)

HOSTILE = {
    "_class_name": "LCMScheduler", "_use_default_values": sorted(SCHEDULER), "algorithm_type": "sde-dpmsolver++",
    "clip_sample": True, "clip_sample_range": 0.1, "disable_corrector": [0, 1, 2], "dynamic_thresholding_ratio": 0.5,
    "euler_at_final": True, "final_sigmas_type": "sigma_min", "flow_shift": 3.0, "interpolation_type": "log_linear",
    "lambda_min_clipped": -5.1, "lower_order_final": False, "original_inference_steps": 40, "predict_x0": False,
    "sample_max_value": 0.1, "set_alpha_to_one": False, "sigma_max": 5.0, "sigma_min": 0.5, "skip_prk_steps": True,
    "solver_order": 3, "solver_type": "heun", "thresholding": True, "timestep_scaling": 1.0,
    "timestep_type": "continuous", "use_beta_sigmas": True, "use_dynamic_shifting": True,
    "use_exponential_sigmas": True, "use_flow_sigmas": True, "use_karras_sigmas": True, "use_lu_lambdas": True,
    "variance_type": "learned",
}  # fmt: skip
"""Flags that folders carry, each of which makes some scheduler another sampler."""
IDLE = {"clip_sample_range", "dynamic_thresholding_ratio", "flow_shift", "sample_max_value", "time_shift_type"}
"""Read by diffusers only where flags are set that SAMPLING clears."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", contract.SCHEDULERS)
@pytest.mark.parametrize("counts", [(1, 2, 30), pytest.param((7, 10, 21, 50, 100), marks=pytest.mark.long)])
def test_paints_as_diffusers_and_near_the_truth(name, kind, counts):
    """Heun's first step from zero SNR multiplies the rounding of float32 by up to 100."""
    config = KINDS[kind]
    most = contract.LCM_MAX_STEPS if name == "lcm" else 100
    rounding = 2e-3 if name == "heun" and config["rescale_betas_zero_snr"] else 1e-4
    for steps in (n for n in counts if fewest_steps(name, config) <= n <= most):
        ours, expected, error = paint_gaussian(name, config, steps)
        assert relative(ours, expected) <= rounding
        if steps < 21:
            assert error <= 0.7
        else:
            assert abs(error - (0.5 if name in STOCHASTIC else 0)) <= 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", contract.SCHEDULERS)
def test_fewer_steps_than_paint_are_refused(name, kind):
    config = KINDS[kind]
    fewest = fewest_steps(name, config)
    check_steps(name, config, fewest)
    assert all(paint_gaussian(name, config, fewest, spread)[2] < bound for spread, bound in ((0.5, 0.7), (1.0, 1.0)))
    if fewest > 1:
        assert any(paint_gaussian(name, config, fewest // 2, s)[2] > b for s, b in ((0.5, 0.7), (1.0, 1.0)))
        spacing = config["timestep_spacing"]
        with pytest.raises(
            InvalidArgument, match=f"num_inference_steps: .*{name} needs {fewest} .*{spacing}.*dpmpp_2m"
        ):
            check_steps(name, config, fewest - 1)
    check_steps("dpmpp_2m", config, 1)


@pytest.mark.parametrize("name", contract.SCHEDULERS)
def test_no_flag_of_a_folder_makes_it_another_sampler(name):
    config = KINDS["v_prediction, leading + 1"]
    predict = Gaussian(config).predict
    expected = paint(name, config, 5, predict)
    for flag, value in HOSTILE.items():
        assert torch.equal(paint(name, {**config, flag: value}, 5, predict), expected), flag


@pytest.mark.parametrize("name", contract.SCHEDULERS)
def test_no_flag_is_left_to_the_default_of_a_class(name):
    kind, changes = CLASSES[name]
    assert set(inspect.signature(kind).parameters) <= {*TRAINING, *SAMPLING, *changes, *IDLE}


@pytest.mark.parametrize("spacing", ["trailing", *(pytest.param(s, marks=pytest.mark.long) for s in SPACINGS[:2])])
@pytest.mark.parametrize("name", contract.SCHEDULERS)
def test_every_count_has_its_timesteps_within_the_training(name, spacing):
    config = {**SCHEDULER, "timestep_spacing": spacing}
    for steps in range(1, (50 if name == "lcm" else 100) + 1):
        timesteps = torch.stack(Schedule(name, config, steps, CPU).timesteps)
        assert len(timesteps) == count_steps(name, steps)
        assert 0 <= timesteps.min() <= timesteps.max() <= 999
        assert (timesteps.diff() <= 0).all()


@pytest.mark.parametrize("name", ["euler", "heun", "unipc"])
def test_sixty_one_steps_from_the_end_paint_as_sixty_do(name):
    """Of diffusers they are 62, and the last of them is at timestep -1."""
    world = Gaussian(KINDS["v_prediction, trailing + 1"])
    sixty, one_more = (paint(name, world.config, n, world.predict) for n in (60, 61))
    assert relative(one_more, sixty) <= 0.005


class Recorder(TorchDispatchMode):
    """Records what is done to tensors of the device `meta`, which have no values: reading one raises."""

    def __init__(self):
        super().__init__()
        self.done = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(isinstance(x, torch.Tensor) and x.is_meta for x in tree_leaves((args, kwargs))):
            self.done.add(str(function).removeprefix("aten.").split(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", contract.SCHEDULERS)
def test_a_step_only_adds_and_multiplies_on_the_device(name):
    device = torch.device("meta")
    with Recorder() as recorder:
        schedule = Schedule(name, KINDS["v_prediction, trailing + 1"], 5, device)
        latents = schedule.initial(torch.zeros(SHAPE, device=device))
        for i in range(len(schedule.timesteps)):
            predicted = torch.empty_like(schedule.scale(latents, i))
            latents = schedule.step(predicted, i, latents, [torch.Generator()])
    assert latents.is_meta
    assert {(timestep.device, timestep.dtype) for timestep in schedule.timesteps} == {(device, torch.float32)}
    allowed = {"add", "sub", "rsub", "mul", "div", "neg", "empty_like", "unbind"}
    assert {"add", "mul"} & recorder.done
    assert recorder.done <= allowed


class Elsewhere(torch.Tensor):
    """In the CPU's memory, but says that it is on another device."""

    device = property(lambda self: torch.device("cuda"))


@pytest.mark.parametrize("kind", ["epsilon, leading + 1", "v_prediction, zero SNR, trailing + 1"])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_unipc_on_another_device_is_diffusers(kind, steps):
    config = KINDS[kind]
    world = Gaussian(config)

    def predict(latents, timestep):
        return world.predict(latents.as_subclass(torch.Tensor), timestep).as_subclass(Elsewhere)

    found = paint("unipc", config, steps, predict)
    assert isinstance(found, Elsewhere)
    assert relative(found, paint_with_diffusers("unipc", config, steps, world.predict)) <= 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type is sample; must be one of epsilon, v_prediction"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr needs prediction_type v_prediction"),
        ({"timestep_spacing": None}, "timestep_spacing is None; must be one of leading, linspace, trailing"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is sigmoid"),
        ({"beta_start": None}, "beta_start is missing"),
    ],
)
def test_a_checkpoint_that_no_scheduler_can_sample_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"scheduler configuration: {message}"):
        training({key: value for key, value in {**SCHEDULER, **changes}.items() if value is not None})


def test_a_checkpoint_s_own_betas_are_believed():
    betas = [0.001 * (1 + i / 100) for i in range(1000)]
    schedule = Schedule("euler", {**SCHEDULER, "trained_betas": betas}, 3, CPU)
    kept = np.cumprod(1 - np.array(betas))[int(schedule.timesteps[0])]
    assert float(schedule.initial(torch.ones(1))) == pytest.approx((1 / kept) ** 0.5, rel=1e-4)


def test_the_table_in_the_documentation_is_what_is_refused():
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    start = next(i for i, row in enumerate(rows) if row[2:] == list(contract.SCHEDULERS))
    table = rows[start + 2 : start + 7]
    spacings = [(zero_snr == "yes", spacing) for zero_snr, cell, *_ in table for spacing in cell.split(", ")]
    assert sorted(spacings) == sorted((zero, spacing) for zero in (False, True) for spacing in SPACINGS)
    for zero_snr, cell, *fewest in table:
        for spacing in cell.split(", "):
            config = {**SCHEDULER, "timestep_spacing": spacing, "rescale_betas_zero_snr": zero_snr == "yes"}
            assert fewest == [str(fewest_steps(name, config)) for name in contract.SCHEDULERS]
