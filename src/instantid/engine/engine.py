"""Requests in, answers out: one thread that launches one unit of work at a time, for one request or a batch."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from instantid.engine.admission import Admission
from instantid.engine.events import Delivery, Event, EventName, InlineDelivery, Listener, Load
from instantid.engine.policy import Policy
from instantid.engine.task import Model, Task, Unit
from instantid.errors import Cancelled, DeviceFailure, EngineFailure, Overloaded, ServiceError

log = logging.getLogger(__name__)

Finish = Callable[[Task], Any]
"""Turns a task whose phases are done into its answer; runs on threads beside the work."""

EXPECTED_TIMES = 20
"""A unit of work may take this many times what the cost table says before it counts as late."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A unit of work that was launched and may still be running on the device."""

    unit: Unit
    kind: str
    rows: int
    batch: list[Task]
    finished: list[Task]
    expected: float


class Engine:
    """Schedules tasks on one model, unit by unit; at most one unit runs behind the one that is being launched.

    `clock` gives seconds and is the one that deadlines are counted in.
    """

    def __init__(
        self,
        model: Model,
        policy: Policy,
        admission: Admission,
        finish: Finish,
        *,
        finishers: Executor | None = None,
        listeners: Sequence[Listener] = (),
        deliver: type[InlineDelivery] = Delivery,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._policy = policy
        self._admission = admission
        self._finish = finish
        self._finishers = finishers or ThreadPoolExecutor(2, thread_name_prefix="finish")
        self._events = deliver(listeners)
        self._clock = clock
        self._in_flight: Launched | None = None
        self._late_at = math.inf
        self._broken: DeviceFailure | None = None

    def submit(self, tasks: Iterable[Task]) -> None:
        """Queue tasks without waiting; those that are refused are answered at once."""
        for task in tasks:
            task.arrived = self._clock()
            try:
                self._admission.admit(task)
            except Exception as error:  # noqa: BLE001 - one request's failure must not end the others
                self._fail(task, error)
            else:
                self._tell("queued", [task])

    def wait_until_started(self, tasks: Sequence[Task]) -> None:
        """Return once each has been started or has ended, so that later ones queue in front of the engine."""
        self._admission.wait_until_started(tasks)

    def cancel(self, request_id: str) -> None:
        """End the request of this id at the next tick; unknown ids are ignored."""
        for task in self._admission.tasks:
            task.cancelled |= bool(request_id) and task.request_id == request_id

    def poll_cancelled(self) -> None:
        """Ask for every task whether its caller has cancelled; for a thread that does so every few tens of ms."""
        for task in self._admission.tasks:
            try:
                task.cancelled |= task.is_cancelled()
            except Exception:
                log.exception("request %r cannot be asked whether it is cancelled", task.request_id)

    def run(self) -> None:
        """Work until closed; every task that is left then is answered with an error.

        Raises DeviceFailure when the device cannot be used any more.
        """
        try:
            while self._admission.wait_for_tasks():
                self.step()
        finally:
            self.close()

    def step(self) -> None:
        """One tick: drop ended requests, start those that fit, launch one unit of work, settle the one before it."""
        self._expect(self._in_flight)
        try:
            self._drop_ended()
            self._start_waiting()
            batch = self._pick()
        except Exception as error:  # noqa: BLE001
            batch = self._expel(error)
        launched = self._launch(batch) if batch else None
        self._settle()
        self._in_flight = launched
        if launched and (launched.unit.done or self.idle):
            self._settle()
        self._expect(self._in_flight)
        if not self._in_flight:
            self._late_at = math.inf
        if self._broken:
            raise self._broken

    def close(self) -> None:
        """Stop working and answer everything that is unanswered."""
        for task in self._admission.close():
            self._answer(task, self._broken or EngineFailure("the server is stopping"))
        self._finishers.shutdown(wait=True)
        self._events.close()

    @property
    def lateness(self) -> float:
        """Seconds that the work in flight has taken beyond any expectation; 0 or less in good order."""
        return self._clock() - self._late_at

    @property
    def load(self) -> Load:
        started = self._admission.started
        backlog = sum(self._policy.remaining(task) for task in self._admission.tasks)
        return Load(len(started), sum(task.plan.rows for task in started), backlog)

    @property
    def idle(self) -> bool:
        return not self._admission.tasks

    def _expect(self, launched: Launched | None) -> None:
        """Count lateness from now on."""
        self._late_at = self._clock() + EXPECTED_TIMES * (launched.expected if launched else 0.0)

    def _drop_ended(self) -> None:
        for task in self._admission.tasks:
            if reason := self._reason_to_drop(task):
                left, units = (sum(phase.count for phase in phases) for phases in (task.left, task.plan.phases))
                self._fail(task, Cancelled(f"{reason} with {left} of {units} units of work left"))

    def _reason_to_drop(self, task: Task) -> str:
        if task.deadline is not None and self._clock() >= task.deadline:
            return "deadline_ms: the deadline passed"
        return "cancelled by the caller" if task.cancelled else ""

    def _start_waiting(self) -> None:
        self._policy.keep_accounts(self._admission.tasks, self._clock())
        while waiting := self._admission.waiting:
            task = self._policy.first(waiting, self._clock())
            if not self._admission.fits(task) or self._broken:
                return
            self._start(task)

    def _start(self, task: Task) -> None:
        try:
            self._admission.start(task, self._model.start(task.request, task.given))
        except Exception as error:  # noqa: BLE001
            self._fail(task, error)
        else:
            self._tell("started", [task])

    def _pick(self) -> list[Task]:
        tasks = [task for task in self._admission.started if task.left]
        batch = self._policy.pick(tasks, self._clock()) if tasks else []
        self._policy.charge(batch)
        return batch

    def _expel(self, error: Exception) -> list[Task]:
        """After policy or admission raised: end the tasks that they raise for, or else the last one."""
        tasks = self._admission.tasks
        for task in [task for task in tasks if self._raises(task)] or tasks[-1:]:
            self._fail(task, error)
        return []

    def _raises(self, task: Task) -> bool:
        try:
            self._reason_to_drop(task)
            self._policy.first([task], self._clock())
            self._admission.fits(task)
        except Exception:  # noqa: BLE001
            return True
        return False

    def _launch(self, batch: list[Task]) -> Launched | None:
        kind, rows = batch[0].left[0].kind, sum(task.left[0].rows for task in batch)
        try:
            expected = self._policy.seconds(batch)
            self._late_at += EXPECTED_TIMES * expected
            unit = self._model.work(kind, [task.state for task in batch])
        except Exception as error:  # noqa: BLE001
            self._launch_alone(batch, rows, error)
            return None
        for task in batch:
            task.advance()
        return Launched(unit, kind, rows, batch, [task for task in batch if not task.left], expected)

    def _launch_alone(self, batch: list[Task], rows: int, error: Exception) -> None:
        """After a launch raised, and so nothing advanced: each of the batch by itself."""
        if len(batch) == 1 or isinstance(error, DeviceFailure):
            self._fail(batch[0], error)
            return
        log.warning("a unit of %d requests failed (%s); running each alone", len(batch), error)
        if isinstance(error, Overloaded):
            self._policy.costs.limit(batch[0].left[0].kind, batch[0].plan.group, rows)
        for task in batch:
            self._settle()
            if task.state and not self._broken:
                self._in_flight = self._launch([task])

    def _settle(self) -> None:
        """Wait for the unit in flight; end the tasks that failed in it, hand over those that are finished."""
        launched, self._in_flight = self._in_flight, None
        if launched is None:
            return
        try:
            seconds = launched.unit.wait()
        except Exception as error:  # noqa: BLE001
            for task in launched.batch:
                self._fail(task, error)
            return
        self._tell("worked", launched.batch, seconds, launched.kind, launched.rows)
        for task in launched.batch:
            state = task.state
            if state and state.failure:
                self._fail(task, state.failure)
            elif state and task in launched.finished:
                self._hand_over(task)

    def _hand_over(self, task: Task) -> None:
        self._admission.leave(task)
        try:
            self._finishers.submit(self._finish_and_answer, task)
        except Exception as error:  # noqa: BLE001
            self._fail(task, error)

    def _finish_and_answer(self, task: Task) -> None:
        try:
            self._answer(task, self._finish(task))
        except Exception as error:  # noqa: BLE001
            self._fail(task, error)

    def _fail(self, task: Task, error: Exception) -> None:
        self._admission.leave(task)
        if isinstance(error, DeviceFailure):
            self._broken = error
        if not isinstance(error, ServiceError):
            log.error("request %r failed", task.request_id, exc_info=error)
            error = EngineFailure("the picture could not be made; the server's log has the reason")
        self._answer(task, error)

    def _answer(self, task: Task, outcome: Any) -> None:
        task.state = None
        try:
            if task.answer.give(outcome):
                self._tell("ended", [task], self._clock() - task.arrived, outcome=outcome)
        except Exception:
            log.exception("request %r could not be answered", task.request_id)

    def _tell(self, name: EventName, tasks: Sequence[Task], *facts: Any, **more: Any) -> None:
        try:
            if self._events.listeners:
                self._events.tell(Event(name, tasks, self.load, *facts, **more))
        except Exception:
            log.exception("the listeners were not told")
