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
        self._before: Metrics | None = None

    def look(self, at: float) -> Sample:
        """Raises OSError if a server does not answer, and ValueError for what is no metric."""
        now = [line for url in self.urls for line in parse(_get(url))]
        new = increases(now, self._before if self._before is not None else now)
        self._before = now
        pending = total(now, "nv_inference_pending_request_count")
        return Sample(
            at,
            pending=pending - total(now, "nv_inference_pending_request_count", model="instantid"),
            active=total(now, "instantid_active_requests"),
            backlog_seconds=total(now, "instantid_backlog_seconds"),
            steps=total(new, "instantid_step_seconds_count"),
            rows=total(new, "instantid_step_rows_sum"),
            answered=total(new, "instantid_requests_total", outcome="OK"),
            refused=total(new, "instantid_requests_total", outcome="UNAVAILABLE")
            + total(new, "nv_inference_request_failure", model="denoiser", reason="REJECTED"),
        )


def increases(now: Metrics, before: Metrics) -> Metrics:
    """By how much each series has grown; one that is lower than before began anew with its process."""
    known = {(name, *sorted(labels.items())): value for name, labels, value in before}
    grown = [(value, known.get((name, *sorted(labels.items())), 0.0)) for name, labels, value in now]
    return [
        (name, labels, value - old if value >= old else value)
        for (name, labels, _), (value, old) in zip(now, grown, strict=True)
    ]


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        text: str = response.read().decode()
        return text
