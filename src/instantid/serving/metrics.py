"""Our metrics on Triton's `/metrics`: in sender mode Triton's latencies of the denoiser mean nothing."""

from collections.abc import Collection
from typing import Any

import triton_python_backend_utils as pb_utils

from instantid import contract

DEFAULT_TENANT = str(contract.TENANT.default)
OTHER = "other"
"""The tenant in labels of all that are not configured."""
STEP_SECONDS = [0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
STEP_ROWS = [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0]
STAGE_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0]
CALL_SECONDS = [0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 60.0, 120.0, 240.0, 600.0]

FAMILIES: dict[str, tuple[str, str, list[float] | None]] = {
    "requests_total": ("COUNTER", "Requests that ended, by the stage where they did and how", None),
    "call_seconds": ("HISTOGRAM", "Seconds of an answered request, from its arrival in intake", CALL_SECONDS),
    "stage_seconds": ("HISTOGRAM", "Seconds of one stage of an answered request", STAGE_SECONDS),
    "step_seconds": ("HISTOGRAM", "Seconds of one step", STEP_SECONDS),
    "step_rows": ("HISTOGRAM", "UNet rows of one step", STEP_ROWS),
    "waiting_requests": ("GAUGE", "Requests in the engine that have not started", None),
    "active_requests": ("GAUGE", "Requests started and not answered", None),
    "active_rows": ("GAUGE", "UNet rows of started requests", None),
    "backlog_seconds": ("GAUGE", "Work of all requests in the engine, in seconds", None),
    "cost_units_total": ("COUNTER", "UNet rows of one megapixel evaluated for requests that ended", None),
    "gpu_seconds_total": ("COUNTER", "Device seconds of requests that ended", None),
    "text_cache_total": ("COUNTER", "Texts found in the cache or encoded", None),
}
"""By name without its prefix: kind, description and buckets."""


class Metrics:
    """This process's metrics, each made when it is first asked for.

    For one thread: a metric that two threads touch at once crashes the server (its messages share one slot in shared
    memory; seen on 2.51.0). `tenants` are those that labels name.
    """

    def __init__(self, tenants: Collection[str]) -> None:
        self.tenants = dict.fromkeys((DEFAULT_TENANT, *tenants, OTHER))
        self._families: dict[str, Any] = {}
        """Kept, for a metric whose family is gone cannot be used."""
        self._metrics: dict[tuple[str, ...], Any] = {}

    def label(self, tenant: str) -> str:
        """How labels name a tenant."""
        return tenant if tenant in self.tenants else OTHER

    def get(self, name: str, **labels: str) -> Any:
        """The metric of a family with these labels, of which `tenant` may be any name."""
        if "tenant" in labels:
            labels["tenant"] = self.label(labels["tenant"])
        key = name, *labels.values()
        if key not in self._metrics:
            kind, description, buckets = FAMILIES[name]
            if name not in self._families:
                kinds = pb_utils.MetricFamily
                self._families[name] = kinds(f"instantid_{name}", description, getattr(kinds, kind))
            options = {"buckets": buckets} if buckets else {}
            self._metrics[key] = self._families[name].Metric(labels=labels, **options)
        return self._metrics[key]
