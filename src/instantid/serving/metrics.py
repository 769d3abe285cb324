"""The engine's own metrics on Triton's `/metrics`: in sender mode Triton's latencies of this model mean nothing."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from instantid.engine import Load, Task
from instantid.errors import ServiceError

OUTCOMES = ("OK", "INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL")
STEP_SECONDS = [0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0]
REQUEST_SECONDS = [0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 60.0, 120.0]


class EngineMetrics:
    """An engine's observer that counts for one instance.

    `cache` gives hits and misses of the text cache so far; `publish` is told the backlog whenever it changes. A lock
    keeps calls apart: a metric that two threads touch at once crashes the server (its messages share one slot in
    shared memory; seen on 2.51.0).
    """

    def __init__(self, instance: str, cache: Callable[[], tuple[int, int]], publish: Callable[[float], None]) -> None:
        self._families: list[Any] = []
        """Kept, for a metric whose family is gone cannot be used."""
        self._labels = {"instance": instance}
        self._cache, self._cached = cache, cache()
        self._publish = publish
        self._lock = threading.Lock()
        requests = self._family("instantid_requests_total", "Requests answered, by outcome", "COUNTER")
        self._outcomes = {name: requests.Metric(labels={**self._labels, "outcome": name}) for name in OUTCOMES}
        texts = self._family("instantid_text_cache_total", "Texts found in the cache or encoded", "COUNTER")
        self._texts = [texts.Metric(labels={**self._labels, "result": result}) for result in ("hit", "miss")]
        rows = self._family("instantid_step_rows_total", "UNet rows evaluated", "COUNTER")
        self._rows = rows.Metric(labels=self._labels)
        active = self._family("instantid_active_requests", "Requests started and not answered", "GAUGE")
        self._active = active.Metric(labels=self._labels)
        memory = self._family("instantid_active_rows", "UNet rows of started requests", "GAUGE")
        self._active_rows = memory.Metric(labels=self._labels)
        backlog = self._family("instantid_backlog_seconds", "Work of all requests in the engine, in seconds", "GAUGE")
        self._backlog = backlog.Metric(labels=self._labels)
        self._step_seconds = self._histogram("instantid_step_seconds", "Seconds of one step", STEP_SECONDS)
        self._request_seconds = self._histogram(
            "instantid_request_seconds", "Seconds from the engine's door to the answer", REQUEST_SECONDS
        )

    def stepped(self, batch: Sequence[Task], seconds: float, load: Load) -> None:
        with self._lock:
            self._rows.increment(sum(task.rows for task in batch))
            self._step_seconds.observe(seconds)
            self._loaded(load)

    def ended(self, task: Task, outcome: Any, seconds: float, load: Load) -> None:
        status = outcome.status if isinstance(outcome, ServiceError) else "OK"
        with self._lock:
            self._loaded(load)
            self._outcomes[status].increment(1)
            self._request_seconds.observe(seconds)
            now = self._cache()
            for metric, new, old in zip(self._texts, now, self._cached, strict=True):
                metric.increment(new - old)
            self._cached = now

    def _loaded(self, load: Load) -> None:
        self._publish(load.backlog)
        for gauge, value in zip((self._active, self._active_rows, self._backlog), load, strict=True):
            gauge.set(value)

    def _histogram(self, name: str, description: str, buckets: list[float]) -> Any:
        return self._family(name, description, "HISTOGRAM").Metric(labels=self._labels, buckets=buckets)

    def _family(self, name: str, description: str, kind: str) -> Any:
        kinds = pb_utils.MetricFamily
        self._families.append(kinds(name=name, description=description, kind=getattr(kinds, kind)))
        return self._families[-1]
