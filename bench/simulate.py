"""The serving engine under a simulated clock: waiting times per class, against three other ways to schedule.

The engine and its policy are the ones that serve; only the clock and the denoiser are simulated. Run
`python bench/simulate.py --help`. Step costs are seconds from `COSTS`: 19.5 TFLOP for the two rows of a step with
guidance at 1024x1024 at 450 TFLOP/s, and the published gains of batching (H200: 1.02x at 1024x1024, 1.8-3.2x at
512x512); `--costs FILE` takes a table that a GPU wrote.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from instantid.engine import Answer, CostTable, Engine, Policy, Room, Task
from instantid.engine.task import UNNAMED, Size
from instantid.errors import ServiceError
from instantid.settings import Settings

LARGE, SMALL = (1024, 1024), (512, 512)
STEP, SMALL_STEP = 0.0433, 0.0118
TENANT_SHARE = float(Settings.model_fields["tenant_share"].default)
COSTS = CostTable(
    {
        LARGE: ((2, STEP), (4, 2 * STEP / 1.02), (8, 4 * STEP / 1.02)),
        SMALL: (
            (2, SMALL_STEP),
            (4, 2 * SMALL_STEP / 1.82),
            (8, 4 * SMALL_STEP / 2.77),
            (16, 8 * SMALL_STEP / 3.2),
        ),
    },
    {LARGE: 0.54 * STEP, SMALL: 0.54 * SMALL_STEP},
)
"""Decoding a picture is 10.5 TFLOP against the 19.5 of a step."""


@dataclass(frozen=True)
class Class:
    """A kind of request: its share of the load, what it sends on top of that, and what it asks for."""

    name: str
    share: float
    steps: int
    flood: float = 0.0
    size: Size = LARGE
    tenant: str = UNNAMED
    priority_level: int = 2


TENANTS = tuple(Class(f"tenant {name}", 0.2, 30, tenant=name) for name in "abcde")
MIXES: dict[str, tuple[Class, ...]] = {
    "steps": (Class("30 steps", 0.8, 30), Class("8 steps", 0.2, 8)),
    "three": (Class("30 steps", 0.5, 30), Class("8 steps", 0.3, 8), Class("50 steps", 0.2, 50)),
    "sizes": (Class("1024x1024", 0.4, 30), Class("512x512", 0.6, 30, size=SMALL)),
    "priorities": (Class("urgent", 0.1, 30, priority_level=1), Class("normal", 0.9, 30)),
    "tenants": TENANTS,
    "flood": (*TENANTS[:-1], replace(TENANTS[-1], flood=1.8)),
    "small tenants": tuple(replace(kind, size=SMALL) for kind in TENANTS),
    "small flood": (*(replace(k, size=SMALL) for k in TENANTS[:-1]), replace(TENANTS[-1], flood=1.8, size=SMALL)),
}
"""In the floods the last of five tenants sends ten times its share; the others send as without."""


class FirstCome(Policy):
    """First come, first served, one request at a time to its end."""

    limit = 1

    def pick(self, tasks: Collection[Task], now: float) -> list[Task]:
        first, *others = sorted(tasks, key=lambda task: (task.steps_left > 0, task.arrived))
        if not first.steps_left:
            return [first]
        return [first, *(task for task in others if task.size == first.size)][: self.limit]

    def first(self, tasks: Collection[Task], now: float) -> Task:
        return min(tasks, key=lambda task: task.arrived)


class StepLevelFirstCome(FirstCome):
    """First come, first served, up to four requests a step; later ones join at step boundaries."""

    limit = 4


class RequestBatches(StepLevelFirstCome):
    """Batches of up to four that run to the end before the next one forms."""

    def __init__(self, costs: CostTable, **options: float) -> None:
        super().__init__(costs, **options)
        self._batch: list[Task] = []

    def pick(self, tasks: Collection[Task], now: float) -> list[Task]:
        self._batch = [task for task in self._batch if task in tasks] or super().pick(tasks, now)
        return [task for task in self._batch if not task.steps_left][:1] or self._batch


POLICIES: dict[str, Callable[..., Policy]] = {
    "first come, one at a time": FirstCome,
    "request batches of 4": RequestBatches,
    "step-level, first come": StepLevelFirstCome,
    "this engine": Policy,
}


@dataclass
class Work:
    """State of a simulated request."""

    rows: int
    steps_left: int
    size: Size
    pictures_left: int = 1
    failure: None = None


class SimulatedDenoiser:
    """Advances the clock by what the table says a step and a decode cost."""

    def __init__(self, costs: CostTable) -> None:
        self.costs = costs
        self.now = 0.0

    def start(self, job: Class) -> Work:
        return Work(2, job.steps, job.size)

    def step(self, states: Sequence[Work]) -> None:
        self.now += self.costs.step(states[0].size, sum(state.rows for state in states))
        for state in states:
            state.steps_left -= 1

    def decode(self, state: Work) -> None:
        self.now += self.costs.decode(state.size)
        state.pictures_left -= 1


class Inline(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        fn(*args, **kwargs)
        return Future()


def solo(costs: CostTable, kind: Class) -> float:
    """Seconds of a request of this class alone on the device."""
    return kind.steps * costs.step(kind.size, 2) + costs.decode(kind.size)


def arrivals(
    mix: Sequence[Class], costs: CostTable, load: float, requests: int, seed: int
) -> list[tuple[float, Class]]:
    """Poisson arrivals at `load` times what one request at a time can serve, about `requests` of them; floods on top.

    Each class draws by itself: mixes that differ in one class only have the same arrivals of the others.
    """
    rate = load * sum(kind.share for kind in mix) / sum(kind.share * solo(costs, kind) for kind in mix)
    horizon = requests / rate
    streams = [(kind, kind.share, "") for kind in mix] + [(kind, kind.flood, "flood") for kind in mix if kind.flood]
    total = sum(kind.share for kind in mix)
    work = [
        (time, kind)
        for kind, share, stream in streams
        for time in _poisson(rate * share / total, horizon, f"{seed} {kind.name} {stream}")
    ]
    return sorted(work, key=lambda arrival: arrival[0])


def _poisson(rate: float, horizon: float, seed: str) -> Iterator[float]:
    rng = random.Random(seed)
    time = rng.expovariate(rate)
    while time < horizon:
        yield time
        time += rng.expovariate(rate)


def simulate(policy: Policy, costs: CostTable, work: Sequence[tuple[float, Class]], max_rows: int) -> dict[str, Any]:
    """Seconds from arrival to picture of every request that was not refused, by class name."""
    denoiser = SimulatedDenoiser(costs)
    engine = Engine(
        denoiser,
        policy,
        lambda job, pictures: None,
        Room(max_rows, int(max_rows * TENANT_SHARE)),
        encoders=Inline(),
        clock=lambda: denoiser.now,
    )
    seconds: dict[str, list[float]] = {kind.name: [] for _, kind in work}
    i = 0
    while i < len(work) or not engine.idle:
        if engine.idle:
            denoiser.now = max(denoiser.now, work[i][0])
        while i < len(work) and work[i][0] <= denoiser.now:
            offer(engine, denoiser, seconds, *work[i])
            i += 1
        engine.step()
    return {name: np.array(values) for name, values in seconds.items()}


def offer(
    engine: Engine, denoiser: SimulatedDenoiser, seconds: dict[str, list[float]], time: float, kind: Class
) -> None:
    def answered(outcome: Any) -> None:
        if not isinstance(outcome, ServiceError):
            seconds[kind.name].append(denoiser.now - time)

    answer = Answer(answered)
    engine.offer([Task(kind, kind.size, 2, kind.steps, answer, tenant=kind.tenant, priority_level=kind.priority_level)])


def main(
    requests: Annotated[int, typer.Option(help="Requests simulated for each policy.")] = 20000,
    load: Annotated[float, typer.Option(help="Share of what one request at a time can serve.")] = 0.9,
    mix: Annotated[str, typer.Option(help="One of " + ", ".join(MIXES))] = "steps",
    max_rows: Annotated[int, typer.Option(help="Rows in memory, 2 a request.")] = 128,
    seed: int = 0,
    costs: Annotated[Path | None, typer.Option(help="Cost table as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the distributions as a picture.")] = None,
) -> None:
    """Print mean, p50 and p99 seconds per class for each policy."""
    table = CostTable.load(costs) if costs else COSTS
    work = arrivals(MIXES[mix], table, load, requests, seed)
    results = {name: simulate(make(table), table, work, max_rows) for name, make in POLICIES.items()}
    show(results, {kind.name: solo(table, kind) for kind in MIXES[mix]})
    if plot:
        draw(results, plot)


def show(results: dict[str, dict[str, Any]], alone: dict[str, float]) -> None:
    table = Table("policy", "class", "alone", "mean", "p50", "p95", "p99")
    for policy, classes in results.items():
        for name, seconds in sorted(classes.items()):
            values = (alone[name], seconds.mean(), *np.percentile(seconds, (50, 95, 99)))
            table.add_row(policy, name, *(f"{value:.2f}" for value in values))
    Console().print(table)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Share of requests not yet answered against seconds, logarithmic, one panel per class."""
    from matplotlib.figure import Figure

    names = sorted(next(iter(results.values())))
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for policy, classes in results.items():
            seconds = np.sort(classes[name])
            axis.step(seconds, 1 - np.arange(len(seconds)) / len(seconds), label=policy)
        axis.set(xscale="log", yscale="log", title=name, xlabel="seconds", ylabel="share still waiting")
    axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    typer.run(main)
