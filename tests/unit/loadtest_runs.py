"""Runs of the load test that never took place, for tests of what is made of a run."""

from loadtest.record import Record, Request, Sample
from loadtest.scenario import Scenario

SCENARIO = Scenario(
    name="made up",
    description="Two tenants, two classes.",
    seconds=100,
    rate=2,
    tenants=[{"name": "a"}, {"name": "b"}],
    classes=[{"name": "long"}, {"name": "short", "options": {"num_inference_steps": 8}}],
)


def requests(tenant, kind, seconds, outcome="ok", late=0.0):
    """One request a second, with these seconds from when it was due, sent `late` seconds after that."""
    return [
        Request(float(i), i + late, i + spent, tenant, kind, outcome, f"id-{i}", "" if outcome == "ok" else "<why>")
        for i, spent in enumerate(seconds)
    ]


def record(*groups, **about):
    facts = {
        "scenario": SCENARIO.model_dump(mode="json", by_alias=True),
        "started": "2026-11-28 12:00:00",
        "url": "localhost:8001",
        "alone": {"long": 2.0, "short": 0.5},
        "rate": 2.0,
    }
    samples = [Sample(float(i), 1.0, 2.0, 3.0, 10, 25, 1, i % 2) for i in range(10)]
    return Record({**facts, **about}, [request for group in groups for request in group], samples)
