"""What the engine tells its listeners: metrics, usage records, live streams."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from instantid.engine.task import Task

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0


class Load(NamedTuple):
    """Requests and rows that are started; seconds of work of all requests, waiting or started."""

    active: int
    rows: int
    backlog: float


class Event(NamedTuple):
    """What happened to the tasks, and the load after it: "queued", "started", "worked" or "ended".

    `at` is in seconds of the engine's clock. "worked" is one unit of `kind`, `rows` and `seconds` of the device;
    "ended" has the `outcome`, a result or an exception, `seconds` after the arrival.
    """

    name: str
    tasks: Sequence[Task]
    load: Load
    seconds: float = 0.0
    kind: str = ""
    rows: int = 0
    outcome: Any = None
    at: float = 0.0


Listener = Callable[[Event], None]


class Delivery:
    """Calls the listeners with each event in order, on one thread of its own: Triton's metrics survive no second one.

    `inline` delivers on the thread that tells. An exception of a listener is logged and costs nothing else.
    """

    def __init__(self, listeners: Sequence[Listener], inline: bool = False) -> None:
        self._listeners = listeners
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.tell: Callable[[Event], None] = self._deliver if inline else self._queue.put
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Return once everything told so far has been delivered, at the latest after DRAIN_SECONDS."""
        self._queue.put(None)
        self._thread.join(DRAIN_SECONDS)

    def _run(self) -> None:
        for event in iter(self._queue.get, None):
            self._deliver(event)
            del event  # it holds its tasks, and one that was lost is answered only when nothing holds it

    def _deliver(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed")
