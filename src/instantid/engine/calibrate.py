"""Measures the step costs that the policy plans with, on the device and weights that will be served."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from instantid.engine.costs import CostTable
from instantid.engine.task import Denoiser, Size

REPEATS = 3


def measure_costs(
    denoiser: Denoiser, make_job: Callable[[Size], Any], sizes: Sequence[Size], rows: Sequence[int]
) -> CostTable:
    """Time real steps of requests of one row each, the best of three after one that warms up.

    `make_job` gives a request of one row of that size with more steps than are taken here.
    """
    return CostTable({size: tuple((n, _time_step(denoiser, make_job, size, n)) for n in rows) for size in sizes})


def _time_step(denoiser: Denoiser, make_job: Callable[[Size], Any], size: Size, rows: int) -> float:
    states = [denoiser.start(make_job(size)) for _ in range(rows)]
    denoiser.step(states)
    return min(_timed(lambda: denoiser.step(states)) for _ in range(REPEATS))


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
