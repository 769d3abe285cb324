"""The engine's own metrics on Triton's `/metrics`: in sender mode Triton's latencies of this model mean nothing."""

from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils

from instantid.engine.events import Event, Load
from instantid.errors import ServiceError

OUTCOMES = ("OK", "INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL")
STEP_SECONDS = [0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0]
REQUEST_SECONDS = [0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 60.0, 120.0]


class EngineMetrics:
    """A listener that counts for one instance; called by one thread only.

    `cache` gives hits and misses of the text cache so far. A metric that two threads touch at once crashes the server
    (its messages share one slot in shared memory; seen on 2.51.0).
    """

    def __init__(self, instance: str, cache: Callable[[], tuple[int, int]]) -> None:
        self._families: list[Any] = []
        """Kept, for a metric whose family is gone cannot be used."""
        self._labels = {"instance": instance}
        self._cache, self._cached = cache, cache()
        self._outcomes = self._counters("requests_total", "Requests answered, by outcome", "outcome", OUTCOMES)
        self._texts = self._counters(
            "text_cache_total", "Texts found in the cache or encoded", "result", ("hit", "miss")
        )
        self._rows = self._metric("step_rows_total", "UNet rows evaluated", "COUNTER")
        self._gauges = [
            self._metric("active_requests", "Requests started and not answered", "GAUGE"),
            self._metric("active_rows", "UNet rows of started requests", "GAUGE"),
            self._metric("backlog_seconds", "Work of all requests in the engine, in seconds", "GAUGE"),
        ]
        self._step_seconds = self._metric("step_seconds", "Seconds of one step", "HISTOGRAM", buckets=STEP_SECONDS)
        self._request_seconds = self._metric(
            "request_seconds", "Seconds from the engine's door to the answer", "HISTOGRAM", buckets=REQUEST_SECONDS
        )

    def __call__(self, event: Event) -> None:
        self._loaded(event.load)
        if event.name == "worked" and event.kind == "step":
            self._rows.increment(event.rows)
            self._step_seconds.observe(event.seconds)
        elif event.name == "ended":
            self._ended(event)

    def _ended(self, event: Event) -> None:
        status = event.outcome.status if isinstance(event.outcome, ServiceError) else "OK"
        self._outcomes[status].increment(1)
        self._request_seconds.observe(event.seconds)
        now = self._cache()
        for metric, new, old in zip(self._texts.values(), now, self._cached, strict=True):
            metric.increment(new - old)
        self._cached = now

    def _loaded(self, load: Load) -> None:
        for gauge, value in zip(self._gauges, load, strict=True):
            gauge.set(value)

    def _counters(self, name: str, description: str, label: str, values: tuple[str, ...]) -> dict[str, Any]:
        family = self._family(name, description, "COUNTER")
        return {value: family.Metric(labels={**self._labels, label: value}) for value in values}

    def _metric(self, name: str, description: str, kind: str, **options: Any) -> Any:
        return self._family(name, description, kind).Metric(labels=self._labels, **options)

    def _family(self, name: str, description: str, kind: str) -> Any:
        kinds = pb_utils.MetricFamily
        family = kinds(name=f"instantid_{name}", description=description, kind=getattr(kinds, kind))
        self._families.append(family)
        return family
