"""Calls of the server outside gevent: each caller has a thread and a connection of its own."""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from gevent import GreenletExit
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from instantid_client import DeadlineExceeded, GenerationResult, InstantIDClient, InstantIDError, Overloaded, Routing
from loadtest.answers import WrongAnswer, check_answer
from loadtest.record import Request

SUBJECTS = ("a portrait", "a knight", "a sailor", "a queen", "a chef", "an astronaut", "a violinist", "a gardener")
PLACES = ("in a garden", "at the sea", "in the snow", "in a library", "on a stage", "in a workshop", "under a bridge")
STYLES = ("oil painting", "watercolor", "photo, soft light", "pencil sketch", "film still", "poster")


@dataclass(frozen=True)
class Wanted:
    """What to send: prompt and options (seed included), for whom, and by when."""

    prompt: str
    options: Mapping[str, Any]
    tenant: str = "default"
    priority: int | None = None
    timeout: float = 120.0
    expected: GenerationResult | None = None


class Attempt(NamedTuple):
    """What became of a request, as `loadtest.record.Request` has it."""

    sent: float
    ended: float
    outcome: str
    note: str = ""
    received: int = 0


def draw_prompt(rng: random.Random) -> str:
    return f"{rng.choice(SUBJECTS)} {rng.choice(PLACES)}, {rng.choice(STYLES)}"


class Caller:
    """One thread outside gevent with a client: grpcio's support for gevent now and then never wakes up."""

    def __init__(self, url: str) -> None:
        self._thread = ThreadPool(1)
        self._client: InstantIDClient = self._thread.apply(InstantIDClient, (url,))

    def call(self, function: Callable[[InstantIDClient], Any]) -> Any:
        """`function` of the client, run in the thread; greenlets go on."""
        return self._thread.apply(function, (self._client,))

    def close(self) -> None:
        self._thread.apply(self._client.close)
        self._thread.kill()


class Callers:
    """A pool of callers that grows to `most`; requests beyond that wait, and their time counts from when they were due.

    `clock` gives seconds since the start of the run.
    """

    def __init__(self, url: str, photo: bytes, most: int, clock: Callable[[], float]) -> None:
        self.url, self.photo, self.clock = url, photo, clock
        self.in_flight = 0
        self._idle: list[Caller] = []
        self._room = BoundedSemaphore(most)
        self._prefix = f"load-{time.time_ns() // 1_000_000 % 10**9}"
        self._numbers = itertools.count()

    def send(self, wanted: Wanted, kind: str, planned: float) -> Request:
        """Send a request, wait for its answer, check it, and say what became of it."""
        request_id = f"{self._prefix}-{next(self._numbers)}"
        self.in_flight += 1
        try:
            with self._caller() as caller:
                found = caller.call(lambda client: self._attempt(client, wanted, request_id))
        except GreenletExit:
            found = Attempt(planned, self.clock(), "error", "no answer when the run was given up")
        finally:
            self.in_flight -= 1
        return Request(planned=planned, tenant=wanted.tenant, kind=kind, request_id=request_id, **found._asdict())

    def generate(self, wanted: Wanted) -> GenerationResult:
        """The answer itself. Raises the client's errors."""
        with self._caller() as caller:
            found: GenerationResult | InstantIDError = caller.call(lambda client: self._answer(client, wanted))
        if isinstance(found, InstantIDError):
            raise found
        return found

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _caller(self) -> Iterator[Caller]:
        with self._room:
            caller = self._idle.pop() if self._idle else Caller(self.url)
            yield caller
            self._idle.append(caller)

    def _attempt(self, client: InstantIDClient, wanted: Wanted, request_id: str) -> Attempt:
        sent = self.clock()
        try:
            result = self._generate(client, wanted, request_id)
        except InstantIDError as error:
            return Attempt(sent, self.clock(), outcome_of(error), f"{type(error).__name__}: {error}"[:300])
        ended, received = self.clock(), sum(map(len, result.images))
        try:
            check_answer(result, request_id, wanted.options, wanted.expected)
        except WrongAnswer as error:
            return Attempt(sent, ended, "wrong", str(error), received)
        return Attempt(sent, ended, "ok", "", received)

    def _answer(self, client: InstantIDClient, wanted: Wanted) -> GenerationResult | InstantIDError:
        """An error is returned: gevent prints a traceback of each that a thread raises."""
        try:
            return self._generate(client, wanted, None)
        except InstantIDError as error:
            return error

    def _generate(self, client: InstantIDClient, wanted: Wanted, request_id: str | None) -> GenerationResult:
        routing = Routing(wanted.tenant, wanted.priority)
        return client.generate(
            self.photo, wanted.prompt, timeout=wanted.timeout, request_id=request_id, routing=routing, **wanted.options
        )


def outcome_of(error: InstantIDError) -> str:
    if isinstance(error, DeadlineExceeded):
        return "late"
    return "refused" if isinstance(error, Overloaded) else "error"
