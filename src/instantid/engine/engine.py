"""Requests in, pictures out: one thread that does one unit of work at a time, a step or the decoding of a picture."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from instantid.engine.admission import Room
from instantid.engine.observer import Load, Observer
from instantid.engine.policy import Policy
from instantid.engine.task import Denoiser, Task
from instantid.errors import Cancelled, DeviceFailure, EngineFailure, ServiceError

log = logging.getLogger(__name__)

Encode = Callable[[Any, list[Any]], Any]
"""Turns (job, its pictures as `Denoiser.decode` gave them) into the answer; runs on threads beside the steps."""

EXPECTED_TIMES = 20
"""A unit of work may take this many times what the cost table says before it counts as late."""


class Engine:
    """Schedules tasks on one denoiser, step by step.

    `room` bounds what is in memory. `clock` gives seconds and is the one that deadlines are counted in.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        policy: Policy,
        encode: Encode,
        room: Room,
        *,
        encoders: Executor | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._denoiser = denoiser
        self._policy = policy
        self._encode = encode
        self._room = room
        self._clock = clock
        self._encoders = encoders or ThreadPoolExecutor(2, thread_name_prefix="encode")
        self._observer = observer
        self._tick_began: float | None = None
        self._tick_expected = 0.0
        self._cancelled: set[str] = set()
        self._broken: DeviceFailure | None = None

    def offer(self, tasks: Iterable[Task]) -> None:
        """Take tasks in without waiting for room; those whose tenant has too much in work are answered at once."""
        for task in tasks:
            task.arrived = self._clock()
            refusal = self._room.enter(task)
            if refusal:
                self._answer(task, refusal)

    def wait_until_started(self, tasks: Sequence[Task]) -> None:
        """Returns once each has been started or has ended, so that later ones queue in front of the engine."""
        self._room.wait_until_started(tasks)

    def cancel(self, request_id: str) -> None:
        """End the request of this id at the next step boundary; unknown ids are ignored."""
        self._cancelled |= {request_id} & {task.request_id for task in self._room.tasks if task.request_id}

    def run(self) -> None:
        """Work until closed; every task that is left then is answered with an error.

        Raises DeviceFailure when the device cannot be used any more.
        """
        try:
            while self._room.wait_for_tasks():
                self._tick_began = self._clock()
                self.step()
                self._tick_began = None
        finally:
            self.close()

    def step(self) -> None:
        """One tick: drop who gave up, start who fits, do one unit of work of one batch, hand on what is finished."""
        self._drop_ended()
        self._admit()
        started = self._room.started
        if started:
            batch = self._policy.pick(started, self._clock())
            self._policy.charge(batch)
            self._tick_expected = self._policy.seconds(batch)
            self._advance(batch) if batch[0].steps_left else self._decode(batch[0])
            self._tick_expected = 0.0
        if self._broken:
            raise self._broken

    def close(self) -> None:
        """Stop working and answer everything that is unanswered."""
        for task in self._room.close():
            self._answer(task, self._broken or EngineFailure("the server is stopping"))
        self._encoders.shutdown(wait=True)

    @property
    def lateness(self) -> float:
        """Seconds that the unit of work that runs now has taken beyond any expectation; 0 or less in good order."""
        began = self._tick_began
        return 0.0 if began is None else self._clock() - began - EXPECTED_TIMES * self._tick_expected

    @property
    def load(self) -> Load:
        started = self._room.started
        backlog = sum(self._policy.remaining(task) for task in self._room.tasks)
        return Load(len(started), sum(task.rows for task in started), backlog)

    @property
    def idle(self) -> bool:
        return not self._room.tasks

    def _drop_ended(self) -> None:
        now = self._clock()
        for task in self._room.tasks:
            reason = self._reason_to_drop(task, now)
            if reason:
                self._fail(task, Cancelled(f"{reason} with {task.steps_left} of {task.steps} steps left"))

    def _reason_to_drop(self, task: Task, now: float) -> str:
        if task.deadline is not None and now >= task.deadline:
            return "deadline_ms: the deadline passed"
        if task.request_id in self._cancelled or task.is_cancelled():
            return "cancelled by the caller"
        return ""

    def _admit(self) -> None:
        self._policy.keep_accounts(self._room.tasks, self._clock())
        while waiting := self._room.waiting:
            task = self._policy.first(waiting, self._clock())
            if not self._room.has_place(task) or self._broken:
                return
            self._start(task)

    def _start(self, task: Task) -> None:
        try:
            task.state = self._denoiser.start(task.job)
        except Exception as error:  # noqa: BLE001 - one request's failure must not end the others
            self._fail(task, error)
        else:
            self._room.start(task)

    def _advance(self, batch: list[Task]) -> None:
        began = self._clock()
        try:
            self._denoiser.step([task.state for task in batch])
        except DeviceFailure as error:
            self._fail(batch[0], error)
        except Exception as error:  # noqa: BLE001
            self._advance_alone(batch, error)
        else:
            self._tell("stepped", batch, self._clock() - began)
            for task in batch:
                if task.state and task.state.failure:
                    self._fail(task, task.state.failure)

    def _advance_alone(self, batch: list[Task], error: Exception) -> None:
        if len(batch) == 1:
            self._fail(batch[0], error)
            return
        log.warning("a step of %d requests failed (%s); running each alone", len(batch), error)
        for task in batch:
            self._advance([task])

    def _decode(self, task: Task) -> None:
        try:
            task.decoded.append(self._denoiser.decode(task.state))
            if not task.pictures_left:
                self._forget(task)
                self._encoders.submit(self._encode_and_answer, task)
        except Exception as error:  # noqa: BLE001
            self._fail(task, error)

    def _encode_and_answer(self, task: Task) -> None:
        try:
            self._answer(task, self._encode(task.job, task.decoded))
        except Exception as error:  # noqa: BLE001
            self._fail(task, error)

    def _fail(self, task: Task, error: Exception) -> None:
        self._forget(task)
        if isinstance(error, DeviceFailure):
            self._broken = error
        if not isinstance(error, ServiceError):
            log.error("request %r failed", task.request_id, exc_info=error)
            error = EngineFailure("the picture could not be made; the server's log has the reason")
        self._answer(task, error)

    def _answer(self, task: Task, outcome: Any) -> None:
        if task.answer.give(outcome):
            self._tell("ended", task, outcome, self._clock() - task.arrived)

    def _tell(self, event: str, *facts: Any) -> None:
        if self._observer is None:
            return
        try:
            getattr(self._observer, event)(*facts, self.load)
        except Exception:
            log.exception("an observer failed")

    def _forget(self, task: Task) -> None:
        self._room.leave(task)
        self._cancelled.discard(task.request_id)
        task.state = None
