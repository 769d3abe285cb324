"""One run: what is measured before it, what the users send during it, and what is judged after it."""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import gevent
from gevent.pool import Group

from instantid_client import GenerationResult
from loadtest.arrivals import Arrival
from loadtest.callers import Callers, Wanted, draw_prompt
from loadtest.record import Request, Writer
from loadtest.scenario import Scenario, Tenant
from loadtest.server import Watch

POOL = 3
"""Requests of each class that are painted alone before the run; with `check_equal` only these are sent."""
SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Target:
    """What is tested, and what every request sends; seconds for `timeout` and `drain`.

    `most` bounds the requests in progress; `drain` is how long answers are waited for after the last request.
    """

    url: str
    photo: bytes
    metrics: tuple[str, ...] = ()
    timeout: float = 120.0
    most: int = 256
    drain: float = 120.0
    check_equal: bool = False


@dataclass
class Alone:
    """Answers of a few requests of each class that had the server to themselves, and the median seconds of a class."""

    seconds: dict[str, float] = field(default_factory=dict)
    answers: dict[str, list[tuple[Wanted, GenerationResult]]] = field(default_factory=dict)


def measure_alone(scenario: Scenario, callers: Callers, say: Callable[[str], None]) -> Alone:
    """Send POOL requests of each class, one after the other, and one before all that does not count.

    Raises the client's errors: a server that cannot answer these need not be tested.
    """
    alone = Alone()
    for kind in scenario.classes:
        rng, seconds = random.Random(f"alone {kind.name}"), []
        wanted = [Wanted(draw_prompt(rng), {"seed": rng.randrange(2**31), **kind.options}) for _ in range(POOL)]
        if not alone.seconds:
            say("first request")
            callers.generate(wanted[0])
        say(f"{POOL} of class {kind.name} alone on the server")
        for one in wanted:
            began = time.perf_counter()
            alone.answers.setdefault(kind.name, []).append((one, callers.generate(one)))
            seconds.append(time.perf_counter() - began)
        alone.seconds[kind.name] = median(seconds)
    return alone


class Run:
    """What the users share: the clock, the callers, the record. Times are seconds since `begin`.

    `heard` is told of every request that has ended.
    """

    def __init__(self, scenario: Scenario, target: Target, heard: Callable[[Request], None]) -> None:
        self.scenario, self.target, self.heard = scenario, target, heard
        self.callers = Callers(target.url, target.photo, target.most, self.now)
        self.alone = Alone()
        self.sent = 0
        self._writer: Writer | None = None
        self._began = math.inf
        self._open = Group()
        self._slots: Counter[str] = Counter()
        self._metrics = Watch(target.metrics)
        self._watching: gevent.Greenlet | None = None
        self._options: Mapping[str, Mapping[str, Any]] = {kind.name: kind.options for kind in scenario.classes}

    @property
    def writer(self) -> Writer:
        if self._writer is None:
            raise RuntimeError("the run has not begun")
        return self._writer

    @property
    def rate(self) -> float:
        """Requests a second at level 1 of an open loop, over all tenants."""
        return self.scenario.rate or (self.scenario.load or 0.0) * self.scenario.capacity_rate(self.alone.seconds)

    @property
    def is_over(self) -> bool:
        """Nothing more is due, and every answer is here or was waited for long enough."""
        late = self.now() - self.scenario.seconds
        return late >= 0 and (not self.callers.in_flight or late > self.target.drain)

    def now(self) -> float:
        return time.perf_counter() - self._began

    def begin(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Start clock, record and the look at the server's metrics."""
        facts = {
            "scenario": self.scenario.model_dump(mode="json", by_alias=True),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "url": self.target.url,
            "alone": self.alone.seconds,
            "rate": self.rate,
        }
        self._writer = Writer(folder, {**facts, **about})
        self._began, self.sent = time.perf_counter(), 0
        self._slots.clear()
        self._metrics = Watch(self.target.metrics)
        self._look()
        self._watching = gevent.spawn(self._watch)

    def next_slot(self, tenant: Tenant) -> int:
        """Number of a new caller among its tenant's, from 0 on."""
        self._slots[tenant.name] += 1
        return self._slots[tenant.name] - 1

    def send(self, tenant: Tenant, kind: str, planned: float, rng: random.Random) -> None:
        """Send one request and record it; returns when it has ended."""
        self.sent += 1
        request = self.callers.send(self.wanted(tenant, kind, rng), kind, planned)
        self.writer.add(request)
        self.heard(request)

    def send_due(self, tenant: Tenant, arrival: Arrival, rng: random.Random) -> None:
        """Send one request of an open loop without waiting for its end."""
        self._open.add(gevent.spawn(self.send, tenant, arrival.kind, arrival.at, rng))

    def wanted(self, tenant: Tenant, kind: str, rng: random.Random) -> Wanted:
        """A request of this class: drawn, or one of those that were painted alone where answers are compared."""
        timeout = tenant.deadline or self.target.timeout
        if self.target.check_equal:
            known, expected = rng.choice(self.alone.answers[kind])
            return Wanted(known.prompt, known.options, tenant.name, tenant.priority, timeout, expected)
        options = {"seed": rng.randrange(2**31), **self._options[kind]}
        return Wanted(draw_prompt(rng), options, tenant.name, tenant.priority, timeout)

    def end(self) -> None:
        """Give up what is still unanswered, which counts as an error, and close the record."""
        self._open.kill()
        if self._watching:
            self._watching.kill()
        self._look()
        self.writer.close()

    def _watch(self) -> None:
        while True:
            gevent.sleep(SAMPLE_SECONDS)
            self._look()

    def _look(self) -> None:
        try:
            self.writer.sample(self._metrics.look(self.now()))
        except (OSError, ValueError) as error:
            self.writer.record.about["metrics_error"] = f"{', '.join(self.target.metrics)}: {error}"
