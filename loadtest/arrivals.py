"""When the requests of an open loop are due: a Poisson process whose rate follows the scenario's shape."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.scenario import Scenario, Tenant


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of one class, due `at` seconds after the start of the run, whatever became of those before it."""

    at: float
    kind: str


def arrivals(scenario: Scenario, tenant: Tenant, rate: float) -> Iterator[Arrival]:
    """Arrivals of one tenant, in order; `rate` is the whole scenario's requests a second at level 1.

    Drawn at the tenant's peak rate and thinned to its level (Lewis and Shedler 1979). The seed and the tenant's name
    decide everything: tenants that are added, or whose levels change, leave the arrivals of the others as they are.
    """
    rng = random.Random(f"{scenario.seed} {tenant.name}")
    mix = scenario.mix(tenant)
    peak = scenario.peak(tenant)
    now = 0.0
    while True:
        now += rng.expovariate(rate * scenario.part(tenant) * peak)
        if now >= scenario.seconds:
            return
        kept = rng.random() * peak < scenario.level(tenant, now)
        (kind,) = rng.choices(list(mix), list(mix.values()))
        if kept:
            yield Arrival(now, kind)
