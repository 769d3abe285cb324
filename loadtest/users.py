"""Locust's part: users that send what the scenario says, and the shape that ends the run.

All users start at once. What follows the scenario's levels is how many of a tenant's callers are active (closed loop)
or when its requests are due (open loop), so that a level can change for one tenant alone.
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import gevent
from locust import LoadTestShape, User, task
from locust.exception import StopUser

from loadtest.arrivals import arrivals
from loadtest.record import OUTCOMES
from loadtest.run import Run
from loadtest.scenario import Tenant

IDLE_SECONDS = 0.2
"""How often a caller that its tenant's level leaves out looks again."""


class TenantUser(User):
    """Sends a tenant's requests in one of the two loops; subclasses say when."""

    abstract = True
    current_run: ClassVar[Run]
    tenant: ClassVar[Tenant]

    def on_start(self) -> None:
        self.slot = self.current_run.next_slot(self.tenant)
        self.rng = random.Random(f"{self.current_run.scenario.seed} {self.tenant.name} {self.slot}")


class ClosedUser(TenantUser):
    """One caller of a closed loop: sends, waits for the answer, thinks."""

    abstract = True

    @task
    def call(self) -> None:
        if self.is_active():
            scenario = self.current_run.scenario
            mix = scenario.mix(self.tenant)
            (kind,) = self.rng.choices(list(mix), list(mix.values()))
            self.current_run.send(self.tenant, kind, self.current_run.now(), self.rng)

    def wait_time(self) -> float:
        return self.rng.uniform(*self.tenant.think) if self.is_active() else IDLE_SECONDS

    def is_active(self) -> bool:
        scenario = self.current_run.scenario
        return self.slot < scenario.callers(self.tenant, scenario.level(self.tenant, self.current_run.now()))


class OpenUser(TenantUser):
    """All callers of a tenant in an open loop: each request is sent when it is due, whatever became of the others."""

    abstract = True

    @task
    def follow(self) -> None:
        for arrival in arrivals(self.current_run.scenario, self.tenant, self.current_run.rate):
            gevent.sleep(max(0.0, arrival.at - self.current_run.now()))
            self.current_run.send_due(self.tenant, arrival, self.rng)
        raise StopUser


def user_classes(run: Run) -> list[type[User]]:
    """A class of users for each tenant, named after it on locust's web page."""
    base = ClosedUser if run.scenario.is_closed else OpenUser
    return [type(_name(tenant), (base,), _fields(run, tenant)) for tenant in run.scenario.tenants]


def _name(tenant: Tenant) -> str:
    return "Tenant_" + re.sub(r"\W", "_", tenant.name)


def _fields(run: Run, tenant: Tenant) -> dict[str, Any]:
    scenario = run.scenario
    count = scenario.callers(tenant, scenario.peak(tenant)) if scenario.is_closed else 1
    fields = {"abstract": False, "current_run": run, "tenant": tenant, "fixed_count": count, "host": run.target.url}
    return {**fields, "__module__": __name__}


class ScenarioShape(LoadTestShape):
    """Keeps every user from the start until the run is over."""

    def __init__(self, run: Run, users: int) -> None:
        super().__init__()
        self.run, self.users = run, users

    def tick(self) -> tuple[int, float] | None:
        return None if self.run.is_over else (self.users, float(self.users))


class Progress:
    """A line every few seconds: how far the run is, and what has come back so far."""

    def __init__(self, run: Run, say: Callable[[str], None], every: float = 5.0) -> None:
        self.run, self.say, self.every = run, say, every

    def __call__(self) -> None:
        while True:
            gevent.sleep(self.every)
            if not self.run.is_over:
                self.say(self.line())

    def line(self) -> str:
        done = self.run.writer.record.requests
        counts = Counter(request.outcome for request in done)
        bad = "".join(f"  {counts[name]} {name}" for name in OUTCOMES[1:] if counts[name])
        good = sorted(request.seconds for request in done if request.outcome == "ok")
        p95 = f"  p95 {good[int(0.95 * (len(good) - 1))]:.2f} s" if good else ""
        at = min(self.run.now(), self.run.scenario.seconds)
        return (
            f"{at:5.0f} of {self.run.scenario.seconds:.0f} s  {self.run.sent} sent  {len(good)} answered"
            f"  {self.run.callers.in_flight} in progress{bad}{p95}"
        )
