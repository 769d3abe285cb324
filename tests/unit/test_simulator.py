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


def run(bench, policy, mix, requests, seed, max_rows=128):
    work = bench.arrivals(bench.MIXES[mix], bench.COSTS, LOAD, requests, seed)
    return bench.simulate(bench.POLICIES[policy](bench.COSTS), bench.COSTS, work, max_rows)


def together(results, name):
    return np.concatenate([result[name] for result in results])


def p95(seconds):
    return np.percentile(seconds, 95)


@pytest.mark.parametrize("requests", [2500, pytest.param(20000, marks=pytest.mark.long)])
def test_short_requests_pass_and_long_ones_hardly_pay(bench, requests):
    ours = [run(bench, "this engine", "steps", requests, seed) for seed in SEEDS]
    first_come = [run(bench, "first come, one at a time", "steps", requests, seed) for seed in SEEDS]
    short = bench.solo(bench.COSTS, bench.MIXES["steps"][1])
    assert np.percentile(together(ours, "8 steps"), 99) <= 2 * short + bench.STEP
    assert together(ours, "30 steps").mean() <= 1.1 * together(first_come, "30 steps").mean()
    assert np.percentile(together(first_come, "8 steps"), 99) > 10 * short


@pytest.mark.parametrize(
    ("size", "requests", "seeds"),
    [
        ("", 1500, (0, 1)),
        pytest.param("", 4000, range(4), marks=pytest.mark.long),
        pytest.param("small ", 4000, range(4), marks=pytest.mark.long),
    ],
)
def test_a_flooding_tenant_does_not_slow_the_others(bench, size, requests, seeds):
    for seed in seeds:
        quiet, flooded = (run(bench, "this engine", f"{size}{mix}", requests, seed) for mix in ("tenants", "flood"))
        for name in "abcd":
            assert p95(flooded[f"tenant {name}"]) <= 1.3 * p95(quiet[f"tenant {name}"]), (seed, name)
        assert flooded["tenant e"].mean() > 5 * flooded["tenant a"].mean()


def test_without_fair_shares_the_flood_slows_everybody(bench):
    quiet, flooded = (run(bench, "step-level, first come", mix, 1500, 0) for mix in ("tenants", "flood"))
    assert p95(flooded["tenant a"]) > 2 * p95(quiet["tenant a"])


def test_every_request_of_the_simulation_is_answered(bench):
    for mix in bench.MIXES:
        for policy in bench.POLICIES:
            sent = len(bench.arrivals(bench.MIXES[mix], bench.COSTS, LOAD, 40, 3))
            answered = run(bench, policy, mix, 40, 3, max_rows=1024)
            assert sum(len(seconds) for seconds in answered.values()) == sent >= 20, (mix, policy)


def test_mixes_that_differ_by_a_flood_have_the_same_arrivals_of_the_others(bench):
    def times(mix, name):
        return [time for time, kind in bench.arrivals(bench.MIXES[mix], bench.COSTS, LOAD, 500, 1) if kind.name == name]

    for name in "abcd":
        assert times("tenants", f"tenant {name}") == times("flood", f"tenant {name}")
    assert set(times("tenants", "tenant e")) < set(times("flood", "tenant e"))
    assert 7 <= len(times("flood", "tenant e")) / len(times("tenants", "tenant e")) <= 13


def test_a_plot_is_drawn(bench, tmp_path):
    bench.draw({"this engine": {"a": np.array([1.0, 2.0])}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
