"""Percentiles and counts of a run, by tenant and class."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.record import OUTCOMES, Record, Request

ALL = "all"
FEWEST = {"p50": 10, "p95": 40, "p99": 200}
"""Answers below which a percentile says little: two beyond it are expected of so many."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; seconds are those of the requests that were answered well, nan where there are none."""

    tenant: str
    kind: str
    requests: int
    outcomes: dict[str, int]
    mean: float
    p50: float
    p95: float
    p99: float
    alone: float

    @property
    def p99_over_alone(self) -> float:
        return self.p99 / self.alone


def percentile(requests: Iterable[Request], percent: float) -> float:
    """Of the seconds of the requests that were answered well; nan if there are none."""
    seconds = [request.seconds for request in requests if request.outcome == "ok"]
    return float(np.percentile(seconds, percent)) if seconds else float("nan")


def row(tenant: str, kind: str, requests: Sequence[Request], alone: float) -> Row:
    found = Counter(request.outcome for request in requests)
    seconds = [request.seconds for request in requests if request.outcome == "ok"]
    p50, p95, p99 = (percentile(requests, percent) for percent in (50, 95, 99))
    mean = float(np.mean(seconds)) if seconds else float("nan")
    outcomes = {name: found[name] for name in OUTCOMES}
    return Row(tenant, kind, len(requests), outcomes, mean, p50, p95, p99, alone)


def summary(record: Record) -> list[Row]:
    """A row for each tenant and class, one for each tenant that sends several classes, and one for everything."""
    rows: list[Row] = []
    groups = list(record.groups())
    for tenant in dict.fromkeys(name for name, _, _ in groups):
        own = [(kind, requests) for name, kind, requests in groups if name == tenant]
        rows += [row(tenant, kind, requests, record.alone.get(kind, float("nan"))) for kind, requests in own]
        if len(own) > 1:
            rows.append(row(tenant, ALL, [request for _, requests in own for request in requests], float("nan")))
    return [*rows, row(ALL, ALL, record.requests, float("nan"))]


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, 1/n if one has everything (Jain, Chiu and Hawe 1984)."""
    array = np.asarray(values, float)
    return float(array.sum() ** 2 / (len(array) * (array**2).sum()))
