"""The short form of `bench/isolation.py` on a running server: each run is one of the load test, with its report."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from loadtest.record import Record, read_record
from loadtest.summary import jain, percentile

CONSOLE = Console(stderr=True, highlight=False)
ANYTHING = "[[objectives]]\nat_least = 0\nrefused = 1\nlate = 1\nerrors = 1\n"
"""Nothing is judged here: the measures are read from the record."""


class Sender(NamedTuple):
    """A tenant of a run: its work as a share of what one request at a time can do, its class and its priority."""

    name: str
    load: float
    kind: str = "short"
    priority: int = 2

    def toml(self, rate: float) -> str:
        return (
            f'[[tenants]]\nname = "{self.name}"\nweight = {rate}\npriority = {self.priority}\n'
            f'classes = ["{self.kind}"]\ndeadline = 300\n'
        )


class Target(NamedTuple):
    """The server, and what is asked of it: steps of a short request, a third of those of a long one, and size."""

    host: str
    seconds: float
    output: Path
    steps: int
    size: int

    def classes(self) -> str:
        return "".join(
            f'[[classes]]\nname = "{name}"\noptions = '
            f"{{ num_inference_steps = {steps}, width = {self.size}, height = {self.size} }}\n"
            for name, steps in (("short", self.steps), ("long", 3 * self.steps))
        )


class Bench:
    """Runs scenarios on one server; all rates follow from the time of each class alone in the first."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._alone: dict[str, float] = {}

    def __call__(self, name: str, *senders: Sender) -> Record:
        """A run of these tenants; a tenant's arrivals are the same in every run in which its load is."""
        rates = [sender.load / self._alone.get(sender.kind, 1.0) for sender in senders]
        sent = f"rate = {sum(rates)}" if self._alone else f"load = {sum(rates)}"
        text = f'description = "{name}"\nseconds = {self.target.seconds}\n{sent}\n'
        path = self.target.output / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        tenants = (sender.toml(rate) for sender, rate in zip(senders, rates, strict=True))
        path.write_text(text + "".join(tenants) + self.target.classes() + ANYTHING)
        CONSOLE.print(f"{name}: {', '.join(f'{sender.name} {sender.load:g}' for sender in senders)}")
        folder = self.target.output / name
        where = ["--host", self.target.host, "--output", str(folder)]
        command = [sys.executable, "-m", "loadtest", "run", str(path), *where]
        subprocess.run(command, check=True)
        record = read_record(max(folder.iterdir()))
        self._alone = self._alone or record.alone
        return record


Found = Iterator[tuple[str, str, str]]
"""Scenario, measure and what was found."""
QUIET = Sender("quiet", 0.3)
TENANTS = tuple(Sender(f"tenant {i}", 0.24) for i in range(5))


def floods(bench: Bench) -> Found:
    alone, again = bench("quiet_alone", QUIET), bench("quiet_alone_again", QUIET)
    yield "repeatability", "quiet tenant: p99 of a second equal run / the first", _ratio(again, alone, "quiet")
    for ratio in (10, 32):
        beside = bench(f"flood_{ratio}", QUIET, Sender("flood", 0.3 * ratio))
        yield f"flood {ratio}:1", "quiet tenant: p99 beside the flood / alone", _ratio(beside, alone, "quiet")


def priority(bench: Bench) -> Found:
    urgent = Sender("urgent", 0.3, priority=1)
    alone = bench("urgent_alone", urgent)
    beside = bench("priority", urgent, *(Sender(f"crowd {i}", 0.4, "long", 3) for i in range(4)))
    yield "strict priority with shedding", "urgent: p99 beside the others / alone", _ratio(beside, alone, "urgent")


def mixed(bench: Bench) -> Found:
    polite = QUIET, Sender("studio", 0.2, "long")
    without, beside = bench("polite", *polite), bench("mixed", *polite, Sender("batch", 1.5, "long", 3))
    for sender in polite:
        yield "mixed", f"{sender.name}: p99 beside the batch tenant / without it", _ratio(beside, without, sender.name)


def saturation(bench: Bench) -> Found:
    record = bench("saturation", *TENANTS)
    p99 = percentile(record.requests, 99) / record.alone["short"]
    yield "saturation tail", "5 tenants: p99 / alone at load 1.2", f"{p99:.1f}; {_counts(record, 'tenant')}"


def fairness(bench: Bench) -> Found:
    record = bench("fairness", *(tenant._replace(load=0.6) for tenant in TENANTS))
    yield (
        "fairness",
        "Jain's index of answers, load 3, 5 tenants",
        f"{_fairness(record):.4f}; {_counts(record, 'tenant')}",
    )


SCENARIOS = {make.__name__: make for make in (floods, priority, mixed, saturation, fairness)}


def measure(target: Target, names: Sequence[str]) -> Found:
    bench = Bench(target)
    for name in names:
        yield from SCENARIOS[name](bench)


def _ratio(record: Record, base: Record, tenant: str) -> str:
    """p99 of one tenant in two runs, and what became of its requests and the others'."""
    one, other = (percentile([r for r in run.requests if r.tenant == tenant], 99) for run in (record, base))
    others = "".join(f"; {_counts(record, name)}" for name in {_crowd(r.tenant) for r in record.requests} - {tenant})
    return f"{one / other:.2f} ({one:.2f} s / {other:.2f} s; {_counts(record, tenant)}{others})"


def _crowd(tenant: str) -> str:
    return tenant.split()[0]


def _counts(record: Record, crowd: str) -> str:
    found = Counter(request.outcome for request in record.requests if _crowd(request.tenant) == crowd)
    return f"{crowd}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))


def _fairness(record: Record) -> float:
    """Of the answers of each tenant between a fifth of the run and its end."""
    ended = [r.tenant for r in record.requests if r.outcome == "ok" and 0.2 <= r.ended / record.seconds <= 1]
    names: Any = [tenant["name"] for tenant in record.about["scenario"]["tenants"]]
    return jain([ended.count(name) for name in names])
