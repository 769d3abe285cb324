"""What the scheduler keeps to under the simulated clock in the scenarios of `bench/isolation.py`."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    for name in ("simulated", "isolation_server", "isolation"):
        spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


def found(rows, policy):
    return [float(row.found[policy].split("%")[0].split(",")[0].split(" ")[0]) for row in rows]


def test_unsaturated_accounts_cost_nothing_and_the_scheduler_less_than_a_hundredth_of_a_step(bench):
    rows = list(bench.overhead(200))
    assert all(percent <= 1.0 for percent in found(rows, bench.OURS)), rows


def test_an_urgent_tenant_does_not_notice_a_crowd_that_is_shed(bench):
    (row,) = bench.priority(150)
    assert found([row], bench.OURS)[0] <= 1.05, row
    assert "0% refused (others 5" in row.found[bench.OURS]
    assert found([row], bench.FIRST_COME)[0] > 5, row


def test_in_a_mixed_load_a_batch_tenant_that_floods_slows_nobody_else(bench):
    rows = list(bench.mixed(150))
    assert all(ratio <= 1.14 for ratio in found(rows, bench.OURS)), rows
    assert all(ratio > 3 for ratio in found(rows, bench.FIRST_COME)), rows


def test_in_overload_short_requests_wait_a_twentieth_of_what_first_come_makes_them_wait(bench):
    _, short = bench.saturation(200)
    assert 20 * found([short], bench.OURS)[0] < found([short], bench.FIRST_COME)[0], short


def test_tenants_that_all_want_too_much_get_nearly_equal_parts_of_the_device(bench):
    """Over seven minutes; chance decides how nearly (docs/loadtest.md)."""
    outcome = bench.run(bench.OURS, bench.tenants(5, 1.0), bench.SATURATED, 1200)
    shares = outcome.shares(0.2 * outcome.last, outcome.last)
    assert bench.jain(list(shares.values())) >= 0.96, shares
    assert np.isclose(sum(shares.values()), 0.8 * outcome.last, rtol=0.01), "the device never rests"
