"""What the engine tells its listeners: metrics, usage records, live streams."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from instantid.engine.task import Task

log = logging.getLogger(__name__)


class Load(NamedTuple):
    """Requests and rows that are started, and the seconds of work of all requests, waiting or started."""

    active: int
    rows: int
    backlog: float


class Queued(NamedTuple):
    """A request was admitted and waits."""

    task: Task
    load: Load


class Started(NamedTuple):
    """A request was given its state; its first unit of work comes next."""

    task: Task
    load: Load


class Worked(NamedTuple):
    """One unit of work of a batch is done and took so many seconds of the device."""

    kind: str
    rows: int
    tasks: Sequence[Task]
    seconds: float
    load: Load


class Ended(NamedTuple):
    """A request was answered, with a result or an exception, `seconds` after it arrived."""

    task: Task
    outcome: Any
    seconds: float
    load: Load


Event = Queued | Started | Worked | Ended
Listener = Callable[[Event], None]


class InlineDelivery:
    """Calls the listeners in the thread that tells; an exception is logged and costs nothing else."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.listeners = listeners

    def tell(self, event: Event) -> None:
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed")

    def close(self) -> None:
        """Return once all that was told has been delivered."""


class Delivery(InlineDelivery):
    """Calls the listeners on one thread of its own, in the order of the events.

    One thread for all: a Triton metric that two threads touch at once crashes the server (seen on 2.51.0).
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        super().__init__(listeners)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name="events", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        self._events.put(event)

    def close(self) -> None:
        self._events.put(None)
        self._thread.join()

    def _deliver(self) -> None:
        while (event := self._events.get()) is not None:
            super().tell(event)
