"""Requests, costs and other ways to schedule for `bench/simulate.py`, and the engine under a simulated clock.

The engine and its policy are the ones that serve; only clock and model are simulated. `COSTS` are seconds: 19.5 TFLOP
for the two rows of a step with guidance at 1024x1024 and 10.5 to decode a picture, at 450 TFLOP/s, and the published
gains of batching (H200: 1.02x at 1024x1024, 1.8 to 3.2x at 512x512).
"""

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from instantid.engine import UNNAMED, Admission, Answer, CostTable, Engine, Group, Phase, Plan, Policy, Task
from instantid.engine.task import Done
from instantid.errors import ServiceError
from instantid.settings import Settings

LARGE, SMALL = Group(1024 * 1024), Group(512 * 512)
STEP, SMALL_STEP = 0.0433, 0.0118
MAX_ROWS = 128
TENANT_ROWS = int(MAX_ROWS * Settings.model_fields["tenant_share"].default)
COSTS = CostTable(
    {
        ("step", LARGE.area): ((2, STEP), (4, 2 * STEP / 1.02), (8, 4 * STEP / 1.02)),
        ("step", SMALL.area): (
            (2, SMALL_STEP),
            (4, 2 * SMALL_STEP / 1.82),
            (8, 4 * SMALL_STEP / 2.77),
            (16, 8 * SMALL_STEP / 3.2),
        ),
        ("decode", LARGE.area): ((1, 0.54 * STEP),),
        ("decode", SMALL.area): ((1, 0.54 * SMALL_STEP),),
    }
)


@dataclass(frozen=True)
class Class:
    """A kind of request: its share of the load, what it sends on top of that, and what it asks for.

    It sends nothing while it has `most` requests in progress.
    """

    name: str
    share: float
    steps: int
    flood: float = 0.0
    group: Group = LARGE
    tenant: str = UNNAMED
    priority_level: int = 2
    most: int = 1_000_000

    @property
    def plan(self) -> Plan:
        return Plan(self.group, (Phase("step", 2, self.steps), Phase("decode", 1, 1)))


Mix = Sequence[Class]
TENANTS = tuple(Class(f"tenant {name}", 0.2, 30, tenant=name) for name in "abcde")
SMALL_TENANTS = tuple(replace(kind, group=SMALL) for kind in TENANTS)


def with_flood(tenants: Mix, most: int = 1_000_000) -> Mix:
    """The last of the tenants sends ten times its share; the others send as without."""
    return (*tenants[:-1], replace(tenants[-1], flood=1.8, most=most))


MIXES: dict[str, Mix] = {
    "steps": (Class("30 steps", 0.8, 30), Class("8 steps", 0.2, 8)),
    "three": (Class("30 steps", 0.5, 30), Class("8 steps", 0.3, 8), Class("50 steps", 0.2, 50)),
    "sizes": (Class("1024x1024", 0.4, 30), Class("512x512", 0.6, 30, group=SMALL)),
    "priorities": (Class("urgent", 0.1, 30, priority_level=1), Class("normal", 0.9, 30)),
    "tenants": TENANTS,
    "flood": with_flood(TENANTS),
    "careful flood": with_flood(TENANTS, most=12),
    "small tenants": SMALL_TENANTS,
    "small flood": with_flood(SMALL_TENANTS),
}
"""In the careful flood the last tenant keeps 12 requests in progress, where admission would let it have 16."""


def quiet_and_flood(steps: int, ratio: float) -> Mix:
    """A tenant, and beside it one that sends `ratio` times as much; with 0 it is alone."""
    quiet = Class("quiet", 1.0, steps, tenant="quiet")
    return (quiet, Class("flood", 0.0, steps, flood=ratio, tenant="flood")) if ratio else (quiet,)


class LeastWork(Policy):
    """Least work first, whoever asks: the serving policy without the tenants' accounts."""

    def _excess(self, task: Task) -> int:
        return 0


class FirstCome(Policy):
    """First come, first served, one request at a time to its end."""

    limit = 1

    def pick(self, tasks: Collection[Task], now: float) -> list[Task]:
        first, *others = sorted(tasks, key=lambda task: (task.left[0].kind == "step", task.arrived))
        if first.left[0].kind == "decode":
            return [first]
        return [first, *(task for task in others if task.plan.group == first.plan.group)][: self.limit]

    def first(self, tasks: Collection[Task], now: float) -> Task:
        return min(tasks, key=lambda task: task.arrived)


class StepLevelFirstCome(FirstCome):
    """First come, first served, up to four requests a step; later ones join at step boundaries."""

    limit = 4


class RequestBatches(StepLevelFirstCome):
    """Batches of up to four that run to the end before the next one forms."""

    def __init__(self, costs: CostTable, tenant_rows: int) -> None:
        super().__init__(costs, tenant_rows)
        self._batch: list[Task] = []

    def pick(self, tasks: Collection[Task], now: float) -> list[Task]:
        self._batch = [task for task in self._batch if task in tasks] or super().pick(tasks, now)
        return [task for task in self._batch if task.left[0].kind == "decode"][:1] or self._batch


MakePolicy = Callable[[CostTable, int], Policy]
POLICIES: dict[str, MakePolicy] = {
    "first come, one at a time": FirstCome,
    "request batches of 4": RequestBatches,
    "step-level, first come": StepLevelFirstCome,
    "least work, no accounts": LeastWork,
    "this engine": Policy,
}


@dataclass
class Work:
    """State of a simulated request."""

    plan: Plan
    failure: ServiceError | None = None


class SimulatedModel:
    """Advances the clock by what the table says a unit costs."""

    fingerprint = "simulated"

    def __init__(self, costs: CostTable) -> None:
        self.costs = costs
        self.now = 0.0

    def plan(self, request: Class) -> Plan:
        return request.plan

    def start(self, request: Class, given: None) -> Work:
        return Work(request.plan)

    def work(self, kind: str, states: Sequence[Work]) -> Done:
        rows = sum(phase.rows for state in states for phase in state.plan.phases if phase.kind == kind)
        seconds = self.costs.seconds(kind, states[0].plan.group, rows)
        self.now += seconds
        return Done(seconds)

    def example(self, size: tuple[int, int], rows: int) -> list[Work]:
        raise NotImplementedError


class Inline(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        fn(*args, **kwargs)
        return Future()


def solo(costs: CostTable, kind: Class) -> float:
    """Seconds of a request of this class alone on the device."""
    return sum(phase.count * costs.seconds(phase.kind, kind.group, phase.rows) for phase in kind.plan.phases)


Arrivals = Sequence[tuple[float, Class]]


def arrivals(mix: Mix, load: float, requests: int, seed: int, costs: CostTable = COSTS) -> Arrivals:
    """Poisson arrivals at `load` times what one request at a time can serve, about `requests` of them; floods on top.

    Each class draws by itself: mixes that differ in one class only have the same arrivals of the others.
    """
    total = sum(kind.share for kind in mix)
    rate = load * total / sum(kind.share * solo(costs, kind) for kind in mix)
    streams = [(kind, kind.share, "") for kind in mix] + [(kind, kind.flood, "flood") for kind in mix]
    work = [
        (time, kind)
        for kind, share, stream in streams
        for time in _poisson(rate * share / total, requests / rate, f"{seed} {kind.name} {stream}")
    ]
    return sorted(work, key=lambda arrival: arrival[0])


def _poisson(rate: float, horizon: float, seed: str) -> Iterator[float]:
    rng = random.Random(seed)
    time = 0.0
    while rate and (time := time + rng.expovariate(rate)) < horizon:
        yield time


def simulate(
    make_policy: MakePolicy,
    work: Arrivals,
    costs: CostTable = COSTS,
    max_rows: int = MAX_ROWS,
    progress: Callable[[Arrivals], Iterable[tuple[float, Class]]] = iter,
) -> dict[str, Any]:
    """Seconds from arrival to picture of every request that was not refused, by class name."""
    model, tenant_rows = SimulatedModel(costs), TENANT_ROWS * max_rows // MAX_ROWS
    admission = Admission(max_rows, tenant_rows=tenant_rows)
    policy = make_policy(costs, tenant_rows)
    engine = Engine(model, policy, admission, lambda task: None, finishers=Inline(), clock=lambda: model.now)
    seconds: dict[str, list[float]] = {kind.name: [] for _, kind in work}
    for time, kind in progress(work):
        while model.now < time and admission.tasks:
            engine.step()
        model.now = max(model.now, time)
        if sum(task.request is kind for task in admission.tasks) < kind.most:
            _submit(engine, model, seconds[kind.name], time, kind)
    while admission.tasks:
        engine.step()
    return {name: np.array(values) for name, values in seconds.items()}


def _submit(engine: Engine, model: SimulatedModel, seconds: list[float], time: float, kind: Class) -> None:
    def answered(outcome: Any) -> None:
        if not isinstance(outcome, ServiceError):
            seconds.append(model.now - time)

    task = Task(kind, None, kind.plan, Answer(answered), tenant=kind.tenant, priority_level=kind.priority_level)
    engine.submit([task])
