"""What is written down of a run: one line for each request and for each look at the server, and what was asked for."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

OUTCOMES = ("ok", "refused", "late", "wrong", "error")
"""Answered well; not taken by the server; deadline passed; answered with something else than asked for; the rest."""
REQUESTS, SAMPLES, RUN = "requests.jsonl", "server.jsonl", "run.json"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; times in seconds since the start of the run.

    `planned` is when it was due. Its `seconds` count from there, so that a generator or a server that falls behind is
    seen in every request that it delays, not only in the first (no coordinated omission). `received`: bytes of the
    pictures.
    """

    planned: float
    sent: float
    ended: float
    tenant: str
    kind: str
    outcome: str
    request_id: str = ""
    note: str = ""
    received: int = 0

    @property
    def seconds(self) -> float:
        return self.ended - self.planned


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at the server's metrics, `at` seconds since the start; counts are those since the look before.

    `pending` requests wait in Triton's queues, `active` ones are started in the engine; `refused` by either.
    """

    at: float
    pending: float = math.nan
    active: float = math.nan
    backlog_seconds: float = math.nan
    steps: float = 0.0
    rows: float = 0.0
    answered: float = 0.0
    refused: float = 0.0

    @property
    def rows_per_step(self) -> float:
        return self.rows / self.steps if self.steps else math.nan


@dataclass
class Record:
    """A run: `about` has the scenario, the address, the seconds of each class alone, and the objectives' verdicts."""

    about: dict[str, Any]
    requests: list[Request] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.about['scenario']['name']}, {self.about['started']}"

    @property
    def seconds(self) -> float:
        return float(self.about["scenario"]["seconds"])

    @property
    def alone(self) -> dict[str, float]:
        return dict(self.about["alone"])

    def groups(self) -> Iterator[tuple[str, str, list[Request]]]:
        """Requests of each tenant and class that was seen; the tenants in the scenario's order."""
        order = [tenant["name"] for tenant in self.about["scenario"]["tenants"]]
        kinds = [kind["name"] for kind in self.about["scenario"]["classes"]]
        for tenant in order:
            for kind in kinds:
                found = [request for request in self.requests if (request.tenant, request.kind) == (tenant, kind)]
                if found:
                    yield tenant, kind, found


class Writer:
    """Appends to a run's folder as things happen, so that a run that is cut short leaves what it saw."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.record = Record(about)
        self._files: dict[str, TextIO] = {name: (folder / name).open("w") for name in (REQUESTS, SAMPLES)}
        self.write_about()

    def add(self, request: Request) -> None:
        self.record.requests.append(request)
        self._append(REQUESTS, request)

    def sample(self, sample: Sample) -> None:
        self.record.samples.append(sample)
        self._append(SAMPLES, sample)

    def write_about(self) -> None:
        (self.folder / RUN).write_text(json.dumps(self.record.about, indent=1) + "\n")

    def close(self) -> None:
        self.write_about()
        for file in self._files.values():
            file.close()

    def _append(self, name: str, entry: Request | Sample) -> None:
        file = self._files[name]
        file.write(json.dumps(asdict(entry)) + "\n")
        file.flush()


def read_record(folder: Path) -> Record:
    """A run that was written to `folder`. Raises ValueError if that is none."""
    try:
        about = json.loads((folder / RUN).read_text())
        requests = [Request(**entry) for entry in _lines(folder / REQUESTS, Request)]
        return Record(about, requests, [Sample(**entry) for entry in _lines(folder / SAMPLES, Sample)])
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{folder}: not a folder that the load test wrote ({error})") from None


def _lines(path: Path, kind: type) -> Iterator[dict[str, Any]]:
    known = {entry.name for entry in fields(kind)}
    for line in path.read_text().splitlines():
        yield {name: value for name, value in json.loads(line).items() if name in known}
