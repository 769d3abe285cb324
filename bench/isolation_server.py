"""The short form of `bench/isolation.py` on a running server: each run is one of the load test, with its report."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from loadtest.record import Record, read_record
from loadtest.summary import jain, percentile

CONSOLE = Console(stderr=True, highlight=False)
TINY = "width = 64, height = 64"
CLASSES = "".join(
    f'[[classes]]\nname = "{name}"\noptions = {{ num_inference_steps = {steps}, {TINY} }}\n'
    for name, steps in (("short", 4), ("long", 12))
)
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


class Bench:
    """Runs scenarios on one server; all rates follow from the time of each class alone in the first."""

    def __init__(self, host: str, seconds: float, output: Path) -> None:
        self.host, self.seconds, self.output = host, seconds, output
        self._alone: dict[str, float] = {}

    def __call__(self, name: str, *senders: Sender) -> Record:
        """A run of these tenants; a tenant's arrivals are the same in every run in which its load is."""
        rates = [sender.load / self._alone.get(sender.kind, 1.0) for sender in senders]
        sent = f"rate = {sum(rates)}" if self._alone else f"load = {sum(rates)}"
        text = f'description = "{name}"\nseconds = {self.seconds}\n{sent}\n'
        path = self.output / f"{name}.toml"
        self.output.mkdir(parents=True, exist_ok=True)
        tenants = (sender.toml(rate) for sender, rate in zip(senders, rates, strict=True))
        path.write_text(text + "".join(tenants) + CLASSES + ANYTHING)
        CONSOLE.print(f"{name}: {', '.join(f'{sender.name} {sender.load:g}' for sender in senders)}")
        folder = self.output / name
        command = [sys.executable, "-m", "loadtest", "run", str(path), "--host", self.host, "--output", str(folder)]
        subprocess.run(command, check=True)
        record = read_record(max(folder.iterdir()))
        self._alone = self._alone or record.alone
        return record


def measure(host: str, seconds: float, output: Path) -> Iterator[tuple[str, str, str]]:
    """Scenario, measure and what was found, for each."""
    bench = Bench(host, seconds, output)
    quiet = Sender("quiet", 0.3)
    alone = bench("quiet_alone", quiet)
    again = bench("quiet_alone_again", quiet)
    yield (
        "overhead, unsaturated",
        "quiet tenant: mean of a second equal run / the first",
        _ratio(again, alone, "quiet"),
    )
    for ratio in (10, 32):
        beside = bench(f"flood_{ratio}", quiet, Sender("flood", 0.3 * ratio))
        yield f"flood {ratio}:1", "quiet tenant: p99 beside the flood / alone", _ratio(beside, alone, "quiet")
    urgent = quiet._replace(name="quiet", priority=1)
    shed = bench("priority", urgent, *(Sender(f"crowd {i}", 0.4, "long", 3) for i in range(4)))
    yield "strict priority with shedding", "urgent: p99 beside the others / alone", _ratio(shed, alone, "quiet")
    polite = quiet, Sender("studio", 0.2, "long")
    without, within = bench("polite", *polite), bench("mixed", *polite, Sender("batch", 1.5, "long", 3))
    for sender in polite:
        yield "mixed", f"{sender.name}: p99 beside the batch tenant / without it", _ratio(within, without, sender.name)
    tenants = [Sender(f"tenant {i}", 0.24) for i in range(5)]
    full = bench("saturation", *tenants)
    p99 = percentile(full.requests, 99) / full.alone["short"]
    yield (
        "saturation tail",
        "5 tenants, short requests: p99 / alone at load 1.2",
        f"{p99:.1f}, {_counts(full, 'tenant')}",
    )
    crowd = bench("fairness", *(tenant._replace(load=0.6) for tenant in tenants))
    yield (
        "fairness",
        "Jain's index of answers, load 3, 5 equal tenants",
        f"{_fairness(crowd):.4f}, {_counts(crowd, 'tenant')}",
    )


def _ratio(record: Record, base: Record, tenant: str) -> str:
    """p99 of one tenant in two runs, and what became of its requests and the others'."""
    one, other = (percentile([r for r in run.requests if r.tenant == tenant], 99) for run in (record, base))
    others = "".join(f"; {_counts(record, name)}" for name in {_crowd(r.tenant) for r in record.requests} - {tenant})
    return f"{one / other:.2f} ({one:.2f} s / {other:.2f} s; {_counts(record, tenant)}{others})"


def _crowd(tenant: str) -> str:
    return tenant.split()[0]


def _counts(record: Record, crowd: str) -> str:
    own = [request for request in record.requests if _crowd(request.tenant) == crowd]
    refused = sum(request.outcome == "refused" for request in own)
    return f"{crowd}: {len(own)} sent, {refused} refused"


def _fairness(record: Record) -> float:
    """Of the answers of each tenant between a fifth of the run and its end."""
    ended = [r.tenant for r in record.requests if r.outcome == "ok" and 0.2 <= r.ended / record.seconds <= 1]
    names: Any = [tenant["name"] for tenant in record.about["scenario"]["tenants"]]
    return jain([ended.count(name) for name in names])
