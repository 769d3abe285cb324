"""What the engine tells its listeners: metrics, usage records, live streams."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from instantid.engine.task import Task

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0


class Load(NamedTuple):
    """Requests and rows that are started, and the seconds of work of all requests, waiting or started."""

    active: int
    rows: int
    backlog: float


EventName = Literal["queued", "started", "worked", "ended"]


class Event(NamedTuple):
    """One thing that happened to these tasks, and the load after it.

    "worked" is one unit of `kind` with so many `rows`, `seconds` of the device; "ended" has the `outcome`, a result or
    an exception, `seconds` after the arrival.
    """

    name: EventName
    tasks: Sequence[Task]
    load: Load
    seconds: float = 0.0
    kind: str = ""
    rows: int = 0
    outcome: Any = None


Listener = Callable[[Event], None]


class InlineDelivery:
    """Calls the listeners on the thread that tells; an exception of theirs is logged and costs nothing else."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.listeners = listeners

    def tell(self, event: Event) -> None:
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed")

    def close(self) -> None:
        """Return once everything told so far has been delivered."""


class Delivery(InlineDelivery):
    """Calls the listeners on one thread of its own, in order: two threads in Triton's metrics crash the server."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        super().__init__(listeners)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        self._events.put(event)

    def close(self) -> None:
        self._events.put(None)
        self._thread.join(DRAIN_SECONDS)

    def _run(self) -> None:
        while event := self._events.get():
            super().tell(event)
            del event  # a task that is kept cannot say that it was lost
