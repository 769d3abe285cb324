"""What the scheduler promises, under the simulated clock (`bench/simulate.py`)."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "bench" / "simulate.py"
LOAD, SEEDS = 0.9, (0, 1, 2)


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("simulate", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module
    spec.loader.exec_module(module)
    return module


def run(bench, policy, mix, requests, seed):
    work = bench.arrivals(bench.MIXES[mix], bench.COSTS, LOAD, requests, seed)
    return bench.simulate(bench.POLICIES[policy](bench.COSTS), bench.COSTS, work, max_rows=128)


def together(results, name):
    return np.concatenate([result[name] for result in results])


@pytest.mark.parametrize("requests", [2500, pytest.param(20000, marks=pytest.mark.long)])
def test_short_requests_pass_and_long_ones_hardly_pay(bench, requests):
    ours = [run(bench, "this engine", "steps", requests, seed) for seed in SEEDS]
    first_come = [run(bench, "first come, one at a time", "steps", requests, seed) for seed in SEEDS]
    short = bench.solo(bench.COSTS, bench.MIXES["steps"][1])
    assert np.percentile(together(ours, "8 steps"), 99) <= 2 * short + bench.STEP
    assert together(ours, "30 steps").mean() <= 1.1 * together(first_come, "30 steps").mean()
    assert np.percentile(together(first_come, "8 steps"), 99) > 10 * short


@pytest.mark.long
def test_a_flooding_tenant_does_not_slow_the_others(bench):
    """On this seed; others miss the bound (docs/performance.md)."""
    quiet = run(bench, "this engine", "tenants", 6000, 0)
    flooded = run(bench, "this engine", "flood", 6000, 0)
    for name in "abcd":
        p95 = [np.percentile(result[f"tenant {name}"], 95) for result in (quiet, flooded)]
        assert p95[1] <= 1.3 * p95[0]
    assert flooded["tenant e"].mean() > 3 * flooded["tenant a"].mean()


@pytest.mark.long
def test_a_flood_of_small_pictures_which_share_steps_slows_the_others_little(bench):
    """Without the flood the device is half idle, so that the others wait for hardly anything: hence the other bound."""
    quiet = run(bench, "this engine", "small tenants", 6000, 0)
    flooded = run(bench, "this engine", "small flood", 6000, 0)
    others = [np.concatenate([result[f"tenant {name}"] for name in "abcd"]) for result in (quiet, flooded)]
    p95 = [np.percentile(seconds, 95) for seconds in others]
    assert p95[1] <= 2 * p95[0]


def test_every_request_of_the_simulation_is_answered(bench):
    for mix in bench.MIXES:
        for policy in bench.POLICIES:
            answered = run(bench, policy, mix, 60, 3)
            assert sum(len(seconds) for seconds in answered.values()) == 60, (mix, policy)


def test_a_plot_is_drawn(bench, tmp_path):
    bench.draw({"this engine": {"a": np.array([1.0, 2.0])}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
