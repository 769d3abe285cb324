"""What the scheduler promises, under the simulated clock (`bench/simulate.py`)."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
LOAD, SEEDS = 0.9, (0, 1, 2)


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return SimpleNamespace(
        **{k: v for name in ("simulated", "simulate", "closed_loop") for k, v in vars(load(name)).items()}
    )


def together(results, name):
    return np.concatenate([result[name] for result in results])


@pytest.mark.parametrize("requests", [2500, pytest.param(20000, marks=pytest.mark.long)])
def test_short_requests_pass_and_long_ones_hardly_pay(bench, requests):
    ours = [bench.run("this engine", "steps", requests, seed) for seed in SEEDS]
    first_come = [bench.run("first come, one at a time", "steps", requests, seed) for seed in SEEDS]
    short = bench.solo(bench.COSTS, bench.MIXES["steps"][1])
    assert np.percentile(together(ours, "8 steps"), 99) <= 2 * short + bench.STEP
    assert together(ours, "30 steps").mean() <= 1.1 * together(first_come, "30 steps").mean()
    assert np.percentile(together(first_come, "8 steps"), 99) > 10 * short


def short_and_long(short, long):
    """Pairs of requests and seed: a few of 1,000 requests, eight of 2,500 in the long form."""
    return [(1000, seed) for seed in short] + [pytest.param(2500, seed, marks=pytest.mark.long) for seed in long]


@pytest.mark.parametrize(("requests", "seed"), short_and_long((0, 3), range(8)))
def test_equal_tenants_pay_nothing_for_accounts_and_a_flood_does_not_slow_them(bench, requests, seed):
    alone, quiet, flood = (bench.run(policy, mix, requests, seed) for policy, mix in bench.TENANT_RUNS)
    assert bench.quiet_ratio(quiet, alone) <= bench.QUIET_LIMIT
    assert bench.flood_ratio(flood, quiet) <= bench.FLOOD_LIMIT
    assert flood["tenant e"].mean() > 5 * flood["tenant a"].mean()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 8))])
def test_a_flood_does_not_slow_small_pictures_that_share_steps(bench, seed):
    quiet, flood = (bench.run("this engine", f"small {mix}", 2500, seed) for mix in ("tenants", "flood"))
    assert bench.flood_ratio(flood, quiet) <= bench.FLOOD_LIMIT


@pytest.mark.parametrize("steps", [8, 30])
def test_a_tenant_hardly_notices_one_that_sends_thirty_times_as_much(bench, steps):
    alone, beside = (
        bench.run("this engine", bench.quiet_and_flood(steps, ratio), 300, 0, load=0.3)["quiet"] for ratio in (0, 32)
    )
    assert np.percentile(beside, 99) <= 1.14 * np.percentile(alone, 99)


def test_without_accounts_the_flood_slows_everybody(bench):
    quiet, flood = (bench.run("least work, no accounts", mix, 1000, 0) for mix in ("tenants", "flood"))
    assert bench.flood_ratio(flood, quiet) > 2


@pytest.mark.parametrize("scene", range(2))
def test_the_longest_request_is_answered_in_time_among_short_ones_that_never_pause(bench, scene):
    clients = bench.SCENES[scene]
    promised = bench.bound(clients, bench.LONG)
    assert max(bench.closed_loop(bench.Policy, clients, 3 * promised)[bench.LONG.name]) <= 1.05 * promised
    assert max(bench.closed_loop(bench.NeverOverdue, clients, 3 * promised)[bench.LONG.name]) > 2 * promised


def test_every_request_of_the_simulation_is_answered(bench):
    for mix in bench.MIXES:
        for policy in bench.POLICIES.values():
            work = bench.arrivals(bench.MIXES[mix], LOAD, 40, 3)
            answered = bench.simulate(policy, work, max_rows=1024)
            allowed = sum(kind.most > 40 for _, kind in work)
            assert allowed <= sum(map(len, answered.values())) <= len(work), mix
            assert allowed >= 20


def test_mixes_that_differ_by_a_flood_have_the_same_arrivals_of_the_others(bench):
    def times(mix, name):
        return [time for time, kind in bench.arrivals(bench.MIXES[mix], LOAD, 500, 1) if kind.name == name]

    for name in "abcd":
        assert times("tenants", f"tenant {name}") == times("flood", f"tenant {name}")
    assert set(times("tenants", "tenant e")) < set(times("flood", "tenant e"))
    assert 7 <= len(times("flood", "tenant e")) / len(times("tenants", "tenant e")) <= 13


def test_plots_are_drawn(bench, tmp_path):
    bench.draw({"this engine": {"a": np.array([1.0, 2.0])}}, tmp_path / "plot.png")
    bench.draw_credit([(1.0, 1.0, 2.0), (2.0, 1.5, 1.0)], ("quiet", "flood"), tmp_path / "credit.png")
    assert min(path.stat().st_size for path in tmp_path.iterdir()) > 1000
