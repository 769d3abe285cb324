"""Isolation between tenants: the scenarios that the inference gateway community names, and floods.

    python bench/isolation.py simulated     this engine and first come first served, with the assumed costs of an H200
    python bench/isolation.py server        the short form on a running server (`make serve`), by the load test

Both print the same measures. Every latency is relative to the same requests without the others, every p99 that of
requests that were answered; what is refused is said beside it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import isolation_server
import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from simulated import SMALL, STEP, Class, LeastWork, Mix, StepLevelFirstCome, arrivals, quiet_and_flood, simulate

from instantid.engine import Policy, Task
from loadtest.summary import jain

app = typer.Typer(add_completion=False)
FLOODS = (10, 32)
SATURATED, FAIR_REQUESTS, UNEQUAL = 3.0, 4, (8, 20, 30, 40, 50)
"""Load, requests relative to those of the other scenarios, and steps of tenants whose pictures differ."""
OURS, FIRST_COME = "this engine", "first come"


class Outcome(NamedTuple):
    """Of one simulated run: seconds of each answer and share refused by class, and who used the device when.

    `device` has (seconds since the start, tenant, device seconds) of every unit; `cpu` is the scheduler's own time for
    each unit, on the CPU that runs this. `last` is when the last request arrived.
    """

    seconds: dict[str, Any]
    refused: dict[str, float]
    device: list[tuple[float, str, float]]
    cpu: float
    last: float

    def p99(self, *names: str) -> float:
        return float(np.percentile(np.concatenate([self.seconds[name] for name in names]), 99))

    def shares(self, begin: float, end: float) -> Counter[str]:
        """Device seconds of each tenant between two times."""
        found: Counter[str] = Counter()
        for at, tenant, seconds in self.device:
            found[tenant] += seconds * (begin <= at < end)
        return found


def observed(base: type[Policy], device: list[tuple[float, str, float]]) -> Callable[..., Policy]:
    """The policy, noting whose units it launches."""

    class Observed(base):  # type: ignore[misc, valid-type]
        def charge(self, batch: list[Task]) -> None:
            super().charge(batch)
            rows = sum(task.left[0].rows for task in batch)
            device.extend((self._at, task.tenant, self.seconds(batch) * task.left[0].rows / rows) for task in batch)

    return Observed


POLICIES: dict[str, type[Policy]] = {OURS: Policy, FIRST_COME: StepLevelFirstCome, "no accounts": LeastWork}


def run(policy: str, mix: Mix, load: float, requests: int, seed: int = 0) -> Outcome:
    work = arrivals(mix, load, requests, seed)
    device: list[tuple[float, str, float]] = []
    began = time.process_time()
    seconds = simulate(observed(POLICIES[policy], device), work)
    cpu = (time.process_time() - began) / max(len(device), 1)
    sent = Counter(kind.name for _, kind in work)
    refused = {name: 1 - len(found) / sent[name] for name, found in seconds.items()}
    return Outcome(seconds, refused, device, cpu, work[-1][0])


def tenants(count: int, share: float, steps: int = 30, **fields: Any) -> tuple[Class, ...]:
    return tuple(Class(f"tenant {i}", share / count, steps, tenant=f"t{i}", **fields) for i in range(count))


class Row(NamedTuple):
    scenario: str
    measure: str
    bound: str
    found: dict[str, str]


def saturation(requests: int) -> Iterator[Row]:
    """Five tenants together ask for 1.2 times what the device can do; a fifth of the requests is short."""
    mix = tuple(
        Class(f"{kind} {i}", share / 5, steps, tenant=f"t{i}")
        for i in range(5)
        for kind, share, steps in (("long", 0.8, 30), ("short", 0.2, 8))
    )
    alone = {"long": 30 * STEP + 0.54 * STEP, "short": 8 * STEP + 0.54 * STEP}
    found = {name: run(name, mix, 1.2, requests) for name in (OURS, FIRST_COME)}
    for kind, seconds in alone.items():
        names = [f"{kind} {i}" for i in range(5)]
        shown = {
            name: f"{outcome.p99(*names) / seconds:.1f}, {np.mean([outcome.refused[n] for n in names]):.0%} refused"
            for name, outcome in found.items()
        }
        yield Row("saturation tail", f"{kind} requests: p99 / alone at load 1.2", "", shown)


def overhead(requests: int) -> Iterator[Row]:
    """Five tenants at 0.2 of the device: what accounts and policy cost when there is nothing to decide."""
    found = {name: run(name, tenants(5, 1.0), 0.2, requests) for name in POLICIES}
    mean = {name: float(np.mean(np.concatenate(list(o.seconds.values())))) for name, o in found.items()}
    shown = {
        OURS: f"{mean[OURS] / mean['no accounts'] - 1:+.1%}",
        FIRST_COME: f"{mean[FIRST_COME] / mean['no accounts'] - 1:+.1%}",
    }
    yield Row("overhead, unsaturated", "mean against the same engine without accounts, load 0.2", "1 %", shown)
    cpu = {name: f"{found[name].cpu / STEP:.2%} ({1e6 * found[name].cpu:.0f} us)" for name in (OURS, FIRST_COME)}
    yield Row("overhead, unsaturated", f"scheduler's CPU time for a step of {1000 * STEP:.0f} ms", "1 %", cpu)


def fairness(requests: int) -> Iterator[Row]:
    """Tenants that ask for three times what the device has, from when every queue is full to the last arrival."""
    unequal = tuple(replace(kind, steps=steps) for kind, steps in zip(tenants(5, 1.0), UNEQUAL, strict=True))
    crowds = {"5 equal tenants": tenants(5, 1.0), "16 equal tenants": tenants(16, 1.0), f"steps {UNEQUAL}": unequal}
    for title, mix in crowds.items():
        shown = {}
        for name in (OURS, FIRST_COME):
            outcome = run(name, mix, SATURATED, FAIR_REQUESTS * requests)
            shown[name] = f"{jain(list(outcome.shares(0.2 * outcome.last, outcome.last).values())):.4f}"
        yield Row("fairness", f"Jain's index of device time, load {SATURATED:g}, {title}", "0.99", shown)


def priority(requests: int) -> Iterator[Row]:
    """An urgent tenant at 0.4 of the device beside four of the least priority that ask for 1.6."""
    urgent = Class("urgent", 0.4, 30, tenant="urgent", priority_level=1)
    crowd = tenants(4, 0.0, priority_level=3)
    loud = tuple(replace(kind, flood=0.4) for kind in crowd)
    yield from _beside("strict priority with shedding", "urgent", (urgent,), loud, 0.4, requests)


def mixed(requests: int) -> Iterator[Row]:
    """Interactive 8 steps, standard 30 steps, small pictures, and a batch tenant of 50 steps that floods."""
    polite = (
        Class("interactive", 0.3, 8, tenant="app", priority_level=1),
        Class("standard", 0.2, 30, tenant="studio"),
        Class("small", 0.5, 30, tenant="shop", group=SMALL),
    )
    flood = (Class("batch", 0.0, 50, tenant="batch", priority_level=3, flood=1.5),)
    for kind in polite:
        yield from _beside("mixed", kind.name, polite, flood, 0.5, requests)


def _beside(title: str, name: str, polite: Mix, others: Mix, load: float, requests: int) -> Iterator[Row]:
    """One class's p99 beside the others divided by its p99 without them, and the share of each that is refused."""
    shown = {}
    for policy in (OURS, FIRST_COME):
        alone, beside = run(policy, polite, load, requests), run(policy, (*polite, *others), load, requests)
        lost = np.mean([beside.refused[kind.name] for kind in others])
        ratio = beside.p99(name) / alone.p99(name)
        shown[policy] = f"{ratio:.2f}, {beside.refused[name]:.0%} refused (others {lost:.0%})"
    yield Row(title, f"{name}: p99 beside the others / without them", "", shown)


def floods(requests: int) -> Iterator[Row]:
    """A quiet tenant at 0.3 of the device, alone and beside one that sends 10 and 32 times as much."""
    for ratio in FLOODS:
        shown = {}
        for policy in (OURS, FIRST_COME):
            alone, beside = (run(policy, quiet_and_flood(30, n), 0.3, requests) for n in (0, ratio))
            shown[policy] = f"{beside.p99('quiet') / alone.p99('quiet'):.2f}, {beside.refused['quiet']:.0%} refused"
        yield Row(f"flood {ratio}:1", "quiet tenant: p99 beside the flood / alone", "1.14", shown)


SCENARIOS = (saturation, overhead, fairness, priority, mixed, floods)


@app.command()
def simulated(requests: Annotated[int, typer.Option(help="Requests of a run, without floods.")] = 600) -> None:
    """Print the table for this engine and for first come, first served, step by step."""
    console = Console(stderr=True)
    rows = [row for make in track(SCENARIOS, console=console) for row in make(requests)]
    show(
        ("scenario", "measure", "bound", OURS, FIRST_COME), [(*r[:3], r.found[OURS], r.found[FIRST_COME]) for r in rows]
    )


@app.command()
def server(
    host: Annotated[str, typer.Option(help="The server's gRPC address.")] = "localhost:8001",
    seconds: Annotated[float, typer.Option(help="Length of each of the runs.")] = 60.0,
    output: Annotated[Path, typer.Option(help="Receives a folder for each run.")] = Path("out/isolation"),
    steps: Annotated[int, typer.Option(help="Steps of a short request; a long one has three times as many.")] = 4,
    size: Annotated[int, typer.Option(help="Side of the pictures.")] = 64,
    only: Annotated[list[str] | None, typer.Option(help=" or ".join(isolation_server.SCENARIOS))] = None,
) -> None:
    """Print the short form on a running server; each run leaves a report of the load test."""
    target = isolation_server.Target(host, seconds, output, steps, size)
    rows = list(isolation_server.measure(target, only or list(isolation_server.SCENARIOS)))
    show(("scenario", "measure", "found"), rows)


def show(columns: tuple[str, ...], rows: list[Any]) -> None:
    table = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=200).print(table)


if __name__ == "__main__":
    app()
