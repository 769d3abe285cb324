"""The server's own view during a run: queue, rows per step and refusals, from its `/metrics`."""

import re
import urllib.request
from collections.abc import Mapping, Sequence

from loadtest.record import Sample

LINE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Metrics = Sequence[tuple[str, Mapping[str, str], float]]


def default_url(host: str) -> str:
    """Where `make serve` and the container have their metrics: the port after the gRPC port."""
    name, _, port = host.rpartition(":")
    return f"http://{name or host}:{int(port) + 1 if port.isdigit() else 8002}/metrics"


def parse(text: str) -> Metrics:
    """Name, labels and value of every line of Prometheus' text format."""
    found = (LINE.match(line) for line in text.splitlines() if not line.startswith("#"))
    return [(m["name"], dict(LABEL.findall(m["labels"] or "")), float(m["value"])) for m in found if m]


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """Sum over all series of a family with these labels: over engines, hosts and models."""
    return sum(value for found, own, value in metrics if found == name and labels.items() <= own.items())


class Watch:
    """Looks at one or more servers; counts are differences to the look before, 0 in the first."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls
        self._before: tuple[float, ...] | None = None

    def look(self, at: float) -> Sample:
        """Raises OSError if a server does not answer, and ValueError for what is no metric."""
        metrics = self._read()
        counts = self._counts(metrics)
        steps, rows, answered, refused = map(_increase, counts, self._before or counts)
        self._before = counts
        pending = total(metrics, "nv_inference_pending_request_count") - total(
            metrics, "nv_inference_pending_request_count", model="instantid"
        )
        active, backlog = (total(metrics, f"instantid_{name}") for name in ("active_requests", "backlog_seconds"))
        return Sample(at, pending, active, backlog, steps, rows, answered, refused)

    def _counts(self, metrics: Metrics) -> tuple[float, ...]:
        refused = total(metrics, "instantid_requests_total", outcome="UNAVAILABLE")
        return (
            total(metrics, "instantid_step_seconds_count"),
            total(metrics, "instantid_step_rows_total"),
            total(metrics, "instantid_requests_total", outcome="OK"),
            refused + total(metrics, "nv_inference_request_failure", reason="REJECTED", model="denoiser"),
        )

    def _read(self) -> Metrics:
        return [line for url in self.urls for line in parse(_get(url))]


def _increase(now: float, before: float) -> float:
    """Of a counter, which begins anew when its process does."""
    return now - before if now >= before else now


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        text: str = response.read().decode()
        return text
