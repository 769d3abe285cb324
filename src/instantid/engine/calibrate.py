"""Measures the costs that the policy plans with, on the device and weights that will be served."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instantid.engine.costs import CostTable
from instantid.engine.task import Denoiser, Size

log = logging.getLogger(__name__)

REPEATS = 3
TRUSTED = 1.5
"""A kept table is taken if one step, measured now, is within this factor of what it says."""

MakeJob = Callable[[Size], Any]
"""Gives a request of one picture in one row, of that size, with more steps than are taken here."""


def measure_costs(denoiser: Denoiser, make_job: MakeJob, sizes: Sequence[Size], rows: Sequence[int]) -> CostTable:
    """Time real steps and decodings, the best of three after one that warms up."""
    return CostTable(
        {size: tuple((n, _time_step(denoiser, make_job, size, n)) for n in rows) for size in sizes},
        {size: _time_decode(denoiser, make_job, size) for size in sizes},
    )


def kept_costs(path: Path, denoiser: Denoiser, make_job: MakeJob, check: tuple[Size, int]) -> CostTable | None:
    """The table that was kept, if it can be read and one step and one decoding now agree with it; else None.

    `check` is the size and rows of the step.
    """
    try:
        table = CostTable.load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        log.warning("%s: not a cost table (%r); measuring again", path, error)
        return None
    size, rows = check
    now = (_time_step(denoiser, make_job, size, rows), _time_decode(denoiser, make_job, size))
    then = (table.step(size, rows), table.decode(size))
    if all(a <= TRUSTED * b and b <= TRUSTED * a for a, b in zip(now, then, strict=True)):
        return table
    log.warning(
        "%s: step and decoding take %.4f and %.4f s now, took %.4f and %.4f s; measuring again", path, *now, *then
    )
    return None


def _time_step(denoiser: Denoiser, make_job: MakeJob, size: Size, rows: int) -> float:
    states = [denoiser.start(make_job(size)) for _ in range(rows)]
    denoiser.step(states)
    return min(_timed(lambda: denoiser.step(states)) for _ in range(REPEATS))


def _time_decode(denoiser: Denoiser, make_job: MakeJob, size: Size) -> float:
    states = [denoiser.start(make_job(size)) for _ in range(1 + REPEATS)]
    denoiser.decode(states.pop())
    return min(_timed(lambda: denoiser.decode(states.pop())) for _ in range(REPEATS))


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
