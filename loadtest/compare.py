"""Two runs side by side: percentiles of each tenant and class, and whether a difference is more than chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest import plots
from loadtest.record import CallRecord, Record
from loadtest.report import render
from loadtest.summary import FEWEST, percentile

RESAMPLES = 1000
PERCENT = {"p50": 50.0, "p95": 95.0, "p99": 99.0}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One percentile of one tenant and class, in seconds; `low` and `high` bound `after / before` at 95 %."""

    tenant: str
    kind: str
    name: str
    requests: tuple[int, int]
    before: float
    after: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        return self.after / self.before

    def verdict(self, tolerance: float) -> str:
        """`slower` or `faster` where the whole interval is beyond the tolerance, else `same`; `few` requests."""
        if min(self.requests) < FEWEST[self.name] or not math.isfinite(self.ratio):
            return "few"
        if self.low > 1 + tolerance:
            return "slower"
        return "faster" if self.high < 1 / (1 + tolerance) else "same"


def compare(before: Record, after: Record) -> list[Comparison]:
    """Changes of every tenant and class that both runs have."""
    old = {(tenant, kind): requests for tenant, kind, requests in before.groups()}
    return [
        _change(tenant, kind, name, old[tenant, kind], requests)
        for tenant, kind, requests in after.groups()
        if (tenant, kind) in old
        for name in PERCENT
    ]


def _change(tenant: str, kind: str, name: str, old: Sequence[CallRecord], new: Sequence[CallRecord]) -> Comparison:
    before, after = (percentile(requests, PERCENT[name]) for requests in (old, new))
    seconds = [np.array([r.seconds for r in requests if r.outcome == "ok"]) for requests in (old, new)]
    low, high = _interval(seconds[0], seconds[1], PERCENT[name])
    return Comparison(tenant, kind, name, (len(seconds[0]), len(seconds[1])), before, after, low, high)


def _interval(old: np.ndarray, new: np.ndarray, percent: float) -> tuple[float, float]:
    """95 % interval of the ratio of a percentile, by resampling both runs (bootstrap, Efron 1979)."""
    if not len(old) or not len(new):
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = [np.percentile(rng.choice(values, (RESAMPLES, len(values))), percent, axis=1) for values in (old, new)]
    low, high = np.percentile(drawn[1] / drawn[0], (2.5, 97.5))
    return float(low), float(high)


def lost(record: Record) -> float:
    """Share of requests that were not answered well."""
    return sum(request.outcome != "ok" for request in record.requests) / max(len(record.requests), 1)


def is_worse(before: Record, after: Record, changes: Sequence[Comparison], tolerance: float) -> bool:
    """Whether a percentile is slower beyond the tolerance, or the share of lost requests rose by a hundredth."""
    return any(change.verdict(tolerance) == "slower" for change in changes) or lost(after) > lost(before) + 0.01


def write_comparison(folder: Path, before: Record, after: Record, tolerance: float) -> tuple[Path, Path]:
    """Write `comparison.html`, `comparison.md` and their plot into `folder`; returns the two pages."""
    changes = compare(before, after)
    shown = {
        "before": before, "after": after, "changes": changes, "tolerance": tolerance,
        "lost": (lost(before), lost(after)), "worse": is_worse(before, after, changes, tolerance),
    }  # fmt: skip
    return render(folder, "comparison", shown, {"comparison": plots.waiting([("A", before), ("B", after)])})
