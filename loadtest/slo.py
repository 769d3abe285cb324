"""Service level objectives, read from TOML, and whether a run keeps to them: the load test's exit code."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loadtest.summary import percentile

if TYPE_CHECKING:
    from loadtest.record import Record, Request

PERCENTILES = ("p50", "p95", "p99")
SHARES = {"errors": "error", "wrong": "wrong", "refused": "refused", "late": "late"}
"""Limits of a share of all requests, and the outcome that each counts."""


class Objective(BaseModel):
    """Upper limits for each tenant and class that the two patterns name (`*` for any).

    `p50`, `p95`, `p99` in seconds, counted from when a request was due; `..._alone` the same as multiples of the time
    that the class took alone, for a file that fits any machine. `errors`, `wrong`, `refused`, `late` are shares of all
    requests; none is allowed unless a file says so. With `together`, all requests that match are judged as one.
    `at_least` is the number of requests without which nothing is proven.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    tenant: str = "*"
    kind: str = Field("*", alias="class")
    together: bool = False
    at_least: int = Field(1, ge=0)
    p50: float | None = Field(None, gt=0)
    p95: float | None = Field(None, gt=0)
    p99: float | None = Field(None, gt=0)
    p50_alone: float | None = Field(None, gt=0)
    p95_alone: float | None = Field(None, gt=0)
    p99_alone: float | None = Field(None, gt=0)
    errors: float = Field(0.0, ge=0, le=1)
    wrong: float = Field(0.0, ge=0, le=1)
    refused: float = Field(0.0, ge=0, le=1)
    late: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        if self.together and any(getattr(self, f"{name}_alone") is not None for name in PERCENTILES):
            raise ValueError("together: a limit relative to the time alone is one for a single class")
        return self


class Objectives(BaseModel):
    """A file of objectives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objectives: tuple[Objective, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One limit for one tenant and class; `unit` is `s`, `x alone`, `of requests` or `requests`."""

    tenant: str
    kind: str
    limit_of: str
    limit: float
    found: float
    unit: str

    @property
    def is_plain(self) -> bool:
        """Nothing was allowed and nothing was seen: not worth a line of its own."""
        return self.kept and not self.limit

    @property
    def kept(self) -> bool:
        """A limit for which nothing was measured is not kept."""
        return self.found >= self.limit if self.limit_of == "at_least" else self.found <= self.limit


def judge(record: "Record", objectives: Sequence[Objective]) -> list[Verdict]:
    """Every limit of every objective; an objective that matches nothing gives one verdict that is not kept."""
    return [verdict for objective in objectives for verdict in _judge(record, objective)]


def _judge(record: "Record", objective: Objective) -> Iterator[Verdict]:
    found = [
        (tenant, kind, requests)
        for tenant, kind, requests in record.groups()
        if fnmatchcase(tenant, objective.tenant) and fnmatchcase(kind, objective.kind)
    ]
    if objective.together and found:
        found = [(objective.tenant, objective.kind, [request for *_, requests in found for request in requests])]
    for tenant, kind, requests in found or [(objective.tenant, objective.kind, [])]:
        if objective.at_least > 1 or len(requests) < objective.at_least:
            yield Verdict(tenant, kind, "at_least", objective.at_least, len(requests), "requests")
        if requests:
            yield from _limits(objective, tenant, kind, requests, record.alone.get(kind, math.nan))


def _limits(
    objective: Objective, tenant: str, kind: str, requests: Sequence["Request"], alone: float
) -> Iterator[Verdict]:
    for name in PERCENTILES:
        seconds = percentile(requests, float(name[1:]))
        if (limit := getattr(objective, name)) is not None:
            yield Verdict(tenant, kind, name, limit, seconds, "s")
        if (limit := getattr(objective, f"{name}_alone")) is not None:
            yield Verdict(tenant, kind, name, limit, seconds / alone, "x alone")
    for name, outcome in SHARES.items():
        share = sum(request.outcome == outcome for request in requests) / len(requests)
        yield Verdict(tenant, kind, name, getattr(objective, name), share, "of requests")
