"""What became of each request, told when it has ended: to Prometheus, the usage records and OpenTelemetry."""

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from instantid import contract
from instantid.engine import UNNAMED, Task
from instantid.engine.events import Event
from instantid.errors import Cancelled, EngineFailure, InvalidArgument, Overloaded, ServiceError
from instantid.request import GenerationRequest
from instantid.serving.metrics import DEFAULT_TENANT, Metrics
from instantid.serving.spans import Spans, Stage
from instantid.serving.tensors import read_id, read_parameters
from instantid.settings import Settings

log = logging.getLogger(__name__)

MARKED = ("intake", "face_analysis", "face_conditioning")
"""The stages between a request's marks."""
RECORDED = ("width", "height", "num_inference_steps", "num_images_per_prompt")
"""Options that a usage record holds."""
COST_UNIT = 1024 * 1024
"""Pixels of a UNet row that costs one unit."""


class Reporter:
    """Tells of the requests that end in one stage; for one thread."""

    def __init__(self, stage: str, settings: Settings) -> None:
        self.metrics = Metrics(settings.metrics_tenants)
        self.spans = Spans()
        self._stage, self._path = stage, settings.usage_records
        for tenant in self.metrics.tenants:  # a counter that begins at 1 has no rate
            for kind in (InvalidArgument, Overloaded, Cancelled, EngineFailure):
                self._count(tenant, kind.status, kind.__name__)
            self._count(tenant, "OK", "")

    def ended(self, stages: Sequence[Stage], facts: Mapping[str, Any], outcome: Any, parent: str) -> None:
        """`facts` are the fields of the usage record that are this request's own, its tenant among them."""
        status, reason = "OK", ""
        if isinstance(outcome, Exception):
            kind = type(outcome) if isinstance(outcome, ServiceError) else EngineFailure
            status, reason = kind.status, kind.__name__
        self._count(facts["tenant"], status, reason, 1)
        self.spans.add(stages, parent, {**facts, "outcome": status}, reason)
        self._write(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                **facts,
                "stage": self._stage,
                "outcome": status,
                "reason": reason,
                "seconds": round(stages[-1].ended - stages[0].began, 6),
                "stages": {stage.name: round(stage.ended - stage.began, 6) for stage in stages},
            }
        )

    def _count(self, tenant: str, outcome: str, reason: str, number: int = 0) -> None:
        labels = {"stage": self._stage, "tenant": tenant, "outcome": outcome, "reason": reason}
        self.metrics.get("requests_total", **labels).increment(number)

    def _write(self, record: Mapping[str, Any]) -> None:
        """Opened for each line, so that the file can be moved away; one write, for other processes append too."""
        line = json.dumps(record) + "\n"
        try:
            if self._path == "-":
                sys.stdout.write(line)
                sys.stdout.flush()
            elif self._path:
                with open(self._path, "ab", buffering=0) as file:
                    file.write(line.encode())
        except OSError:
            log.exception("request %(request_id)r has no usage record", {"request_id": record["request_id"]})


class StageWatch:
    """Watches a small model; tells of the requests that end there with an error.

    One thread enters it and asks for marks; its lock lets another one call `refused`.
    """

    def __init__(self, stage: str, settings: Settings) -> None:
        self._reporter = Reporter(stage, settings)
        self._lock = threading.Lock()
        self._stage, self._began = stage, 0.0
        self._parent = ""

    @contextmanager
    def __call__(self, request: Any, arrived: float | None = None) -> Iterator[None]:
        """To be entered with each Triton request; the stage begins now, or when the request `arrived`."""
        self._began, self._parent = time.monotonic() if arrived is None else arrived, ""
        try:
            self._parent = self._reporter.spans.parent(request)
            yield
        except Exception as error:
            self._ended(request, error, self._began, self._parent)
            raise

    def refused(self, request: Any, error: Exception) -> None:
        """A Triton request, not answered yet, that was never begun."""
        self._ended(request, error, time.monotonic(), "")

    def _ended(self, request: Any, error: Exception, began: float, parent: str) -> None:
        with self._lock:
            stages = [Stage(self._stage, began, time.monotonic())]
            self._reporter.ended(stages, _known_facts(request), error, parent)

    def marked(self, request: GenerationRequest) -> GenerationRequest:
        """The request with the begin and end of this stage among its marks, and its trace context."""
        marks = (*request.marks, self._began, time.monotonic())
        return replace(request, marks=marks, traceparent=request.traceparent or self._parent)


@dataclass(slots=True)
class Account:
    """A task so far: when it started, when the latest unit of each kind was done, its share of the device's seconds."""

    started: float | None = None
    done: dict[str, float] = field(default_factory=dict)
    gpu_seconds: float = 0.0


class EngineWatch:
    """A listener of one engine. `cache` gives hits and misses of the text cache so far.

    Its lock keeps `refused`, which the thread of execute() calls, apart from the listeners' thread.
    """

    def __init__(self, engine: str, settings: Settings, cache: Callable[[], tuple[int, int]]) -> None:
        self._reporter = Reporter(contract.DENOISER.name, settings)
        self._metrics, self._engine = self._reporter.metrics, engine
        self._cache, self._cached = cache, cache()
        self._lock = threading.Lock()
        self._accounts: WeakKeyDictionary[Task, Account] = WeakKeyDictionary()
        self._present: Counter[tuple[str, str, str]] = Counter()

    def refused(self, request: Any, error: Exception) -> None:
        """A Triton request, not answered yet, that never became a task."""
        with self._lock:
            now = time.monotonic()
            stages = [Stage("queue", now, now)]
            self._reporter.ended(stages, _known_facts(request), error, self._reporter.spans.parent(request))

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._hear(event)

    def _hear(self, event: Event) -> None:
        for name, value in (("active_rows", event.load.rows), ("backlog_seconds", event.load.backlog)):
            self._metric(name).set(value)
        for task in event.tasks:
            account = self._accounts.setdefault(task, Account())
            if event.name == "started":
                account.started = event.at
            elif event.name == "worked":
                account.done[event.kind] = event.at
                account.gpu_seconds += event.seconds * _rows(task, event.kind) / event.rows
            elif event.name == "ended":
                self._ended(task, self._accounts.pop(task), event)
        if event.name != "worked":
            self._count_present()
        elif event.kind == "step":
            self._metric("step_seconds").observe(event.seconds)
            self._metric("step_rows").observe(event.rows)

    def _metric(self, name: str, **labels: str) -> Any:
        return self._metrics.get(name, engine=self._engine, **labels)

    def _count_present(self) -> None:
        present: Counter[tuple[str, str, str]] = Counter()
        for task, account in self._accounts.items():
            name = "waiting_requests" if account.started is None else "active_requests"
            present[name, self._metrics.label(_tenant(task)), str(task.priority_level)] += not task.answer.given
        for name, tenant, priority in present | self._present:
            self._metric(name, tenant=tenant, priority=priority).set(present[name, tenant, priority])
        self._present = present

    def _ended(self, task: Task, account: Account, event: Event) -> None:
        stages, tenant = _stages(task, account, event.at), _tenant(task)
        units = _cost_units(task)
        self._metric("cost_units_total", tenant=tenant).increment(units)
        self._metric("gpu_seconds_total", tenant=tenant).increment(account.gpu_seconds)
        for result, new, old in zip(("hit", "miss"), (now := self._cache()), self._cached, strict=True):
            self._metric("text_cache_total", result=result).increment(new - old)
        self._cached = now
        if not isinstance(event.outcome, Exception):
            for stage in stages:
                self._metrics.get("stage_seconds", stage=stage.name).observe(stage.ended - stage.began)
            whole = stages[-1].ended - stages[0].began
            self._metrics.get("call_seconds", tenant=tenant, priority=str(task.priority_level)).observe(whole)
        facts = {"request_id": task.request_id, "tenant": tenant, "priority_level": task.priority_level}
        facts |= {"engine": self._engine, **{name: getattr(task.request, name) for name in RECORDED}}
        facts |= {"cost_units": units, "gpu_seconds": round(account.gpu_seconds, 6)}
        self._reporter.ended(stages, facts, event.outcome, task.request.traceparent)


def _known_facts(request: Any) -> dict[str, Any]:
    """Of a request that may be malformed everywhere."""
    facts = {"request_id": "", "tenant": DEFAULT_TENANT, "cost_units": 0.0, "gpu_seconds": 0.0}
    try:
        tenant = read_parameters(request).get(contract.TENANT.name, DEFAULT_TENANT)
        return {**facts, "request_id": read_id(request), "tenant": str(tenant)[: contract.TENANT.high]}
    except InvalidArgument:
        return facts


def _tenant(task: Task) -> str:
    return DEFAULT_TENANT if task.tenant == UNNAMED else task.tenant


def _rows(task: Task, kind: str) -> int:
    return next((phase.rows for phase in task.plan.phases if phase.kind == kind), 0)


def _cost_units(task: Task) -> float:
    """Of the steps that were launched: the same on every device."""
    planned, left = (
        sum(phase.rows * phase.count for phase in phases if phase.kind == "step")
        for phases in (task.plan.phases, task.left)
    )
    return (planned - left) * task.plan.group.area / COST_UNIT


def _stages(task: Task, account: Account, ended: float) -> list[Stage]:
    """Where the request's time went; one that came without marks begins with the queue."""
    marks = task.request.marks or (task.arrived,)
    ends = list(zip(MARKED, marks[1:], strict=False))
    if account.started is None:
        ends.append(("queue", ended))
    else:
        ends += [("queue", account.started), *account.done.items(), ("finish", ended)]
    begins = [marks[0], *(end for _, end in ends)]
    return [Stage(name, begin, max(begin, end)) for (name, end), begin in zip(ends, begins, strict=False)]
