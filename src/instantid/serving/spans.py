"""A request's spans, exported by OTLP over HTTP where OTEL_EXPORTER_OTLP_ENDPOINT is set; imports nothing elsewhere.

The other OTEL_ variables are the SDK's: sampler, service name, resource, headers, time between exports.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instantid.contract import TRACEPARENT
from instantid.serving.tensors import read_parameters

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Stage(NamedTuple):
    """A part of a request's time, in seconds of `time.monotonic()`."""

    name: str
    began: float
    ended: float


class Spans:
    """Makes and exports spans; does nothing where no endpoint is set or the extra `otel` is not installed."""

    def __init__(self) -> None:
        self._tracer: Any = None
        if not any(map(os.environ.get, ENDPOINTS)):
            return
        os.environ.setdefault("OTEL_SERVICE_NAME", "instantid")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            log.warning("no spans are exported: install instantid-triton[otel]")
            return
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = provider.get_tracer(__name__)

    def parent(self, request: Any) -> str:
        """The caller's trace context of a Triton request, or that of Triton's own trace; empty if there is none."""
        if self._tracer is None:
            return ""
        headers = {name.lower(): value for name, value in read_parameters(request).items()}
        context = {**json.loads(request.trace().get_context() or "{}"), **headers}
        return str(context.get(TRACEPARENT.name, ""))[: TRACEPARENT.high]

    def add(self, stages: Sequence[Stage], parent: str, facts: Mapping[str, Any], failure: str) -> None:
        """A span of the request, a child of `parent`, and one of each stage, which follow one another.

        `facts` become attributes; `failure` is empty unless the request failed.
        """
        if self._tracer is None:
            return
        from opentelemetry.trace import StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        offset = time.time_ns() - time.monotonic_ns()
        times = [offset + int(seconds * 1e9) for seconds in (stages[0].began, *(stage.ended for stage in stages))]
        context = TraceContextTextMapPropagator().extract({TRACEPARENT.name: parent})
        attributes = {f"instantid.{name}": value for name, value in facts.items()}
        whole = self._tracer.start_span("instantid", context, start_time=times[0], attributes=attributes)
        if failure:
            whole.set_status(StatusCode.ERROR, failure)
        for stage, began, ended in zip(stages, times[:-1], times[1:], strict=True):
            self._tracer.start_span(stage.name, set_span_in_context(whole), start_time=began).end(ended)
        whole.end(times[-1])
