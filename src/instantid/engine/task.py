"""What the engine schedules, and what it asks of the model that does the work."""

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from instantid.errors import EngineFailure, ServiceError

UNNAMED = ""
"""The tenant of all requests that name none."""


class Group(NamedTuple):
    """What requests must have in common to share a unit of work: `area`, the size of a row, scales costs; any `key`."""

    area: int
    key: Hashable = ()


class Phase(NamedTuple):
    """`count` units of work of one kind ("step", "decode"), each of so many rows."""

    kind: str
    rows: int
    count: int  # type: ignore[assignment]


@dataclass(frozen=True)
class Plan:
    """The work of one request, at least one unit: its phases in order; the device bytes that it keeps once started."""

    group: Group
    phases: tuple[Phase, ...]
    bytes: int = 0

    @cached_property
    def rows(self) -> int:
        return max(phase.rows for phase in self.phases)


class Unit(Protocol):
    """One launched unit of work."""

    done: bool

    def wait(self) -> float:
        """Device seconds, once it is done; sets `failure` on the states that failed in it."""


@dataclass(slots=True)
class Done:
    """A unit that was done when its launch returned, as on a CPU."""

    seconds: float
    done: bool = True

    def wait(self) -> float:
        return self.seconds


class State(Protocol):
    """Everything of one started request; nothing of it lives anywhere else."""

    failure: ServiceError | None


class Model(Protocol):
    """What does the work. A call may raise a ServiceError, whose text is for the caller; DeviceFailure ends the engine.

    `work` launches one unit for a batch and does not wait for the device. If it raises, no state has advanced, and each
    of the batch is run alone. `example` gives started states to measure with.
    """

    @property
    def fingerprint(self) -> str: ...

    def plan(self, request: Any) -> Plan: ...

    def start(self, request: Any, given: Any) -> State: ...

    def work(self, kind: str, states: Sequence[Any]) -> Unit: ...

    def example(self, size: tuple[int, int], rows: int) -> list[Any]: ...


class Answer:
    """One result or one error for one caller, exactly once; later ones are ignored.

    An answer that is dropped without having been given reports an error: no caller waits for ever.
    """

    def __init__(self, send: Callable[[Any | ServiceError], None]) -> None:
        self.given = False
        self._send = send
        self._lock = threading.Lock()

    def give(self, outcome: Any | ServiceError) -> bool:
        """Send the outcome unless one was sent before; returns whether this call sent it."""
        with self._lock:
            first, self.given = not self.given, True
        if first:
            self._send(outcome)
        return first

    def ask(self, question: Callable[[], bool]) -> bool:
        """The request's own question, never once it is answered: Triton 2.51 then reads freed memory and crashes."""
        with self._lock:
            return not self.given and question()

    def __del__(self) -> None:
        self.give(EngineFailure("the request was lost inside the server"))


@dataclass(eq=False, slots=True, weakref_slot=True)
class Task:
    """One request on its way through the engine. `request` and `given` are what `Model.start` takes.

    `deadline` and `arrived` are seconds of the engine's clock; `left` are the phases with their units that were not
    launched yet; `work` and `remaining` are the estimated seconds of all its units and of those that are left; from
    `due` on it has waited too long.
    """

    request: Any
    given: Any
    plan: Plan
    answer: Answer
    request_id: str = ""
    tenant: str = UNNAMED
    priority_level: int = 2
    deadline: float | None = None
    is_cancelled: Callable[[], bool] = lambda: False
    arrived: float = 0.0
    work: float = 0.0
    remaining: float = 0.0
    due: float = math.inf
    state: State | None = None
    cancelled: bool = False
    left: tuple[Phase, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.left = tuple(phase for phase in self.plan.phases if phase.count)

    def advance(self) -> None:
        """Count one unit of the first phase that is left."""
        (kind, rows, count), *later = self.left
        self.left = (Phase(kind, rows, count - 1), *later) if count > 1 else tuple(later)
