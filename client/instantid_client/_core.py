"""What both clients do, written once: each flow yields what has to be done, and is sent what came of it.

A client only performs the steps, with or without `await`. A stream of events will be one more step.
"""

import logging
import os
import sys
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from instantid_client import contract
from instantid_client._addresses import Addresses
from instantid_client._answer import read_answer
from instantid_client._status import error_for
from instantid_client._values import Tensors, make_tensors
from instantid_client.errors import ClientClosed, DeadlineExceeded, InstantIDError, Unreachable, invalid
from instantid_client.results import GenerationResult, Health, ServerHealth
from instantid_client.retry import Budget, RetryPlan
from instantid_client.settings import Routing, Settings, TokenSource, check_seconds
from instantid_client.transport import Call, HealthCall, Refused

MOST_ID_CHARACTERS = 128
TRACE = contract.TRACEPARENT.name
CLOSED = "the client was closed during the call"
log = logging.getLogger("instantid_client")
log.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Infer:
    address: str
    call: Call


@dataclass(frozen=True, slots=True)
class Probe:
    address: str
    call: HealthCall


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class AskToken:
    source: TokenSource


Step = Infer | Probe | Pause | AskToken
T = TypeVar("T")
Flow = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, checked; `began` and `deadline` in seconds of `time.monotonic()`."""

    id: str
    tensors: Tensors
    routing: Routing
    began: float
    deadline: float

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def call(self, metadata: Mapping[str, str]) -> Call:
        left = self.left
        if left <= 0:
            raise DeadlineExceeded("the deadline has passed", request_id=self.id)
        deadline_ms = {contract.DEADLINE_MS.name: max(round(left * 1000), 1)}
        trace = current_trace() if self.routing.traceparent is None else {TRACE: self.routing.traceparent}
        parameters = {**deadline_ms, **trace, **self.routing.parameters()}
        return Call(self.id, self.tensors, parameters, self.routing.priority or 0, left, {**trace, **metadata})


def current_trace() -> dict[str, str]:
    """The W3C context of the current span, if the application uses OpenTelemetry: as metadata and as a parameter."""
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return {TRACE: headers[TRACE]} if TRACE in headers else {}


class Core:
    """What a client knows beside its transport; safe for threads."""

    def __init__(self, url: str | Sequence[str], settings: Settings) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        if not urls or not all(isinstance(address, str) and address for address in urls):
            raise invalid("url", repr(url)[:64], "must be one or more addresses host:port")
        self.addresses = Addresses(urls)
        self._settings = settings
        self._budget = Budget(settings.retries)
        self._closed = False
        self._process = os.getpid()

    def close(self) -> bool:
        """Whether it was open."""
        was_open, self._closed = not self._closed, True
        return was_open

    def generate(
        self, values: Mapping[str, Any], timeout: float | None, request_id: str | None, routing: Routing | None
    ) -> Flow[GenerationResult]:
        """The flow of one request."""
        self._check_open()
        request = self._request(values, timeout, request_id, routing)
        prepared = time.monotonic()
        plan, tried = RetryPlan(self._settings.retries, self._budget), set[str]()
        while True:
            address = self.addresses.pick(tried) or self.addresses.all[0]
            sent = time.monotonic()
            try:
                answer = yield Infer(address, request.call((yield from self._metadata())))
                break
            except (Refused, InstantIDError) as failure:
                yield from self._again_or_raise(failure, address, request, plan, tried)
            except ValueError as error:
                if self._closed:
                    raise ClientClosed(CLOSED, request_id=request.id) from error
                raise
        now = time.monotonic()
        self.addresses.worked(address)
        timings = {"prepare": prepared - request.began, "call": now - sent, "total": now - request.began}
        log.info("request %s answered by %s in %.3f s", request.id, address, timings["total"])
        return read_answer(answer, request.id, timings)

    def _again_or_raise(
        self, failure: Refused | InstantIDError, address: str, request: Request, plan: RetryPlan, tried: set[str]
    ) -> Flow[None]:
        """Returns where the request is to be sent again, after a wait or at once to another server."""
        error = self._failed(failure, address, request)
        tried.add(address)
        if isinstance(error, Unreachable) and not error.sent and len(tried) < len(self.addresses.all):
            return
        pause = plan.pause_after(error, request.left)
        if pause is None:
            raise error
        log.info("request %s is sent again in %.2f s", request.id, pause)
        yield Pause(pause)
        tried.clear()

    def health(self, timeout: float) -> Flow[Health]:
        """All servers; raises the last server's error if none answers."""
        self._check_open()
        if check_seconds("timeout", timeout) <= 0:
            raise DeadlineExceeded("the deadline has passed")
        found, errors = [], []
        for address in self.addresses.all:
            try:
                found.append((yield Probe(address, HealthCall(timeout, (yield from self._metadata())))))
            except Refused as refused:
                errors.append(error_for(refused.reply, address=address))
                found.append(ServerHealth(address, error=str(errors[-1])))
        if len(errors) == len(found):
            raise errors[-1]
        return Health(tuple(found))

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("the client is closed; make a new one")
        if os.getpid() != self._process:
            raise ClientClosed(
                "the client was made before a fork, which gRPC does not survive; make one in each process"
            )

    def _request(
        self, values: Mapping[str, Any], timeout: float | None, request_id: str | None, routing: Routing | None
    ) -> Request:
        began = time.monotonic()
        name = uuid.uuid4().hex if request_id is None else request_id
        if not (isinstance(name, str) and 1 <= len(name) <= MOST_ID_CHARACTERS and name.isprintable()):
            raise invalid("request_id", repr(name)[:64], f"must be 1..{MOST_ID_CHARACTERS} printable characters")
        seconds = check_seconds("timeout", self._settings.timeout if timeout is None else timeout)
        if seconds <= 0:
            raise DeadlineExceeded("the deadline has passed", request_id=name)
        return Request(name, make_tensors(values), routing or self._settings.routing, began, began + seconds)

    def _metadata(self) -> Flow[Mapping[str, str]]:
        token = self._settings.token
        if callable(token):
            token = yield AskToken(token)
        return {**self._settings.metadata, **({"authorization": f"Bearer {token}"} if token else {})}

    def _failed(self, failure: Refused | InstantIDError, address: str, request: Request) -> InstantIDError:
        if self._closed:
            return ClientClosed(CLOSED, request_id=request.id)
        if isinstance(failure, Refused):
            error = error_for(failure.reply, request.id, address)
            error.__cause__ = failure.__cause__
        else:
            error = failure
            error.request_id = error.request_id or request.id
        seconds = time.monotonic() - request.began
        log.info("request %s to %s after %.3f s: %s", request.id, address, seconds, type(error).__name__)
        if isinstance(error, Unreachable):
            self.addresses.failed(address)
        return error
