"""What a model measures of itself when it is loaded: the fastest way to run, costs, and memory for requests."""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from instantid import contract
from instantid.engine import CostTable, Group
from instantid.errors import Overloaded
from instantid.models.memory import free_bytes, release
from instantid.models.predict import EXECUTIONS
from instantid.profile import Profile
from instantid.settings import Settings

log = logging.getLogger(__name__)

Size = tuple[int, int]
"""(height, width) in pixels."""
ROWS = (1, 2, 4, 8, 16)
REPEATS = 3
TRUSTED = 1.5
"""A kept table is taken if one unit of each kind, measured now, is within this factor of what it says."""
FREE_SHARE = {"cuda": 0.8, "cpu": 0.25}
"""Of the free memory, what started requests may keep where the operator says nothing."""


def planned_sizes(profile: Profile) -> list[Size]:
    """The weights' native size, and half its side where that is allowed."""
    native = _square(profile.native_area**0.5, profile)
    return sorted({native, _square(native[0] / 2, profile)}, reverse=True)


def use_fastest_execution(model: Any, size: Size) -> str:
    """Run with the layout and attention kernel that have the shortest step of two rows on this device; its name."""
    timed: dict[str, float] = {}
    for name, execution in EXECUTIONS.items():
        model.use(execution)
        try:
            timed[name] = time_unit(model, "step", size, 2)
        except (RuntimeError, Overloaded) as error:
            log.info("%s does not run on this device: %s", name, str(error).splitlines()[0])
    log.info("seconds of a step: %s", ", ".join(f"{name} {seconds:.4f}" for name, seconds in timed.items()))
    fastest = min(timed, key=lambda name: timed[name])
    model.use(EXECUTIONS[fastest])
    return fastest


def plan_costs(model: Any, profile: Profile, settings: Settings) -> CostTable:
    """Costs at the planned sizes, kept in the cache folder from start to start.

    Measured or checked, every network has made a real pass before the model is ready.
    """
    sizes = planned_sizes(profile)
    prepared = str((settings.execution, list(model.denoise.predictor.prepared)))
    name = hashlib.sha256(f"{model.fingerprint} {prepared}".encode()).hexdigest()[:16]
    path = settings.cache_folder / f"costs-{name}.json"
    table = kept_costs(path, model, sizes[0])
    if table is None:
        table = measure_costs(model, sizes, [rows for rows in ROWS if rows <= settings.max_rows])
        _keep(table, path)
    release(model.device)
    return table


def measure_costs(model: Any, sizes: Sequence[Size], rows: Sequence[int]) -> CostTable:
    """Time real units, the best of three after one that warms up; a size ends at the first batch that does not fit.

    Raises Overloaded if the device cannot hold a single row.
    """
    measured = {}
    for (height, width), phase in itertools.product(sizes, model.phases):
        points = _points(model, phase.kind, (height, width), rows if phase.batched else (1,))
        measured[phase.kind, height * width] = tuple(points)
    return CostTable(measured)


def _points(model: Any, kind: str, size: Size, rows: Sequence[int]) -> list[tuple[int, float]]:
    points: list[tuple[int, float]] = []
    for n in rows:
        try:
            points.append((n, time_unit(model, kind, size, n)))
        except Overloaded:
            if not points:
                raise
            log.warning("%dx%d: %d rows do not fit into memory; batches stay smaller", *size, n)
            break
    return points


def kept_costs(path: Path, model: Any, size: Size) -> CostTable | None:
    """The table that was kept, if it can be read and units of `size` agree with it now; else None."""
    try:
        table = CostTable.load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        log.warning("%s: not a cost table (%r); measuring again", path, error)
        return None
    group = Group(size[0] * size[1])
    for kind, rows in (("step", min(2, table.max_rows("step", group))), ("decode", 1)):
        now, then = time_unit(model, kind, size, rows), table.seconds(kind, group, rows)
        if not (now <= TRUSTED * then and then <= TRUSTED * now):
            log.warning("%s: a %s takes %.4f s now, took %.4f s; measuring again", path, kind, now, then)
            return None
    return table


def time_unit(model: Any, kind: str, size: Size, rows: int) -> float:
    """Seconds of one unit of `rows` requests of one row each."""

    def once() -> Callable[[], float]:
        states = model.example(size, rows)
        return lambda: float(model.work(kind, states).wait())

    once()()
    return min(once()() for _ in range(REPEATS))


def memory_budget(model: Any, profile: Profile, settings: Settings, costs: CostTable) -> float:
    """Bytes that started requests may keep: the setting, or a share of what is free beside the largest unit."""
    if settings.memory_gb:
        return settings.memory_gb * 1e9
    free = free_bytes(model.device)
    if model.device.type == "cuda":
        free -= int(_working_bytes(model, profile, costs))
        release(model.device)
    budget = FREE_SHARE[model.device.type] * max(free, 0)
    log.info("%.1f GB for started requests", budget / 1e9)
    return budget


def _working_bytes(model: Any, profile: Profile, costs: CostTable) -> float:
    """What the largest batch and the largest decoding take on a GPU for the time of a unit."""
    native = planned_sizes(profile)[0]
    area = native[0] * native[1]
    states = model.example(native, costs.max_rows("step", Group(area)))
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    model.work("step", states).wait()
    model.work("decode", states[:1]).wait()
    return (torch.cuda.max_memory_allocated(model.device) - before) * profile.max_area / area


def _square(side: float, profile: Profile) -> Size:
    side = min(max(side, profile.min_side), profile.max_side)
    rounded = int(side) // contract.SIDE_MULTIPLE * contract.SIDE_MULTIPLE
    return rounded, rounded


def _keep(table: CostTable, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{id(table)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(partial)
        partial.replace(path)
    except OSError as error:
        log.info("step costs are not kept: %s", error)
