"""What the engine schedules, and what it asks of the model that does the work."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from instantid.errors import ServiceError

Size = tuple[int, int]
"""(height, width) of the picture in pixels; only requests of one size share a step."""


class State(Protocol):
    """Everything of one request while it is being denoised; nothing of it lives anywhere else."""

    @property
    def rows(self) -> int:
        """Rows of its next step: pictures, twice with guidance."""

    @property
    def steps_left(self) -> int: ...

    @property
    def failure(self) -> ServiceError | None:
        """Set by a step that failed for this request alone."""


class Denoiser(Protocol):
    """The model: `start` a request, `step` a batch of one size, `finish` a request into pictures."""

    def start(self, job: Any) -> State: ...

    def step(self, states: Sequence[Any]) -> None: ...

    def finish(self, state: Any) -> Any: ...


class Answer:
    """One result or one error for one caller, exactly once; whoever comes second is ignored."""

    def __init__(self, send: Callable[[Any | ServiceError], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._given = False

    @property
    def given(self) -> bool:
        return self._given

    def give(self, outcome: Any | ServiceError) -> bool:
        """Send the outcome unless one was sent before; returns whether this call sent it."""
        with self._lock:
            if self._given:
                return False
            self._given = True
        self._send(outcome)
        return True


def never() -> bool:
    return False


@dataclass(eq=False, slots=True)
class Task:
    """One request on its way through the engine.

    `job` is what `Denoiser.start` takes; `rows` and `steps` are known before it is started. `deadline` and
    `arrived` are seconds of the engine's clock. `is_cancelled` is polled at every step boundary.
    """

    job: Any
    size: Size
    rows: int
    steps: int
    answer: Answer
    request_id: str = ""
    tenant: str = "default"
    priority_level: int = 2
    deadline: float | None = None
    is_cancelled: Callable[[], bool] = never
    arrived: float = field(default=0.0)
    state: State | None = None

    @property
    def steps_left(self) -> int:
        return self.steps if self.state is None else self.state.steps_left
