"""What the engine schedules, and what it asks of the model that does the work."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from instantid.errors import EngineFailure, ServiceError

Size = tuple[int, int]
"""(height, width) of the picture in pixels; only requests of one size share a step."""


UNNAMED = ""
"""The tenant of all who name none."""


class State(Protocol):
    """Everything of one request while it is being denoised; nothing of it lives anywhere else."""

    @property
    def rows(self) -> int:
        """Rows of its next step: pictures, twice with guidance."""

    @property
    def steps_left(self) -> int: ...

    @property
    def pictures_left(self) -> int:
        """Pictures that are still to be decoded."""

    @property
    def failure(self) -> ServiceError | None:
        """Set by a step that failed for this request alone."""


class Denoiser(Protocol):
    """The model: `start` a request, `step` a batch of one size, `decode` a finished request's next picture.

    Each may raise a ServiceError whose text is for the caller; DeviceFailure ends the engine.
    """

    def start(self, job: Any) -> State: ...

    def step(self, states: Sequence[Any]) -> None: ...

    def decode(self, state: Any) -> Any: ...


class Answer:
    """One result or one error for one caller, exactly once; whoever comes second is ignored.

    An answer that is dropped without having been given tells its caller so: nobody waits for ever.
    """

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

    def __del__(self) -> None:
        if not self._given:
            self.give(EngineFailure("the request was lost inside the server"))


def never() -> bool:
    return False


@dataclass(eq=False, slots=True)
class Task:
    """One request on its way through the engine.

    `job` is what `Denoiser.start` takes; `rows`, `steps` and `pictures` are known before it is started. `deadline`
    and `arrived` are seconds of the engine's clock. `is_cancelled` is polled at every step boundary.
    """

    job: Any
    size: Size
    rows: int
    steps: int
    answer: Answer
    pictures: int = 1
    request_id: str = ""
    tenant: str = UNNAMED
    priority_level: int = 2
    deadline: float | None = None
    is_cancelled: Callable[[], bool] = never
    arrived: float = field(default=0.0)
    state: State | None = None
    decoded: list[Any] = field(default_factory=list)

    @property
    def steps_left(self) -> int:
        return self.steps if self.state is None else self.state.steps_left

    @property
    def pictures_left(self) -> int:
        return self.pictures if self.state is None else self.state.pictures_left
