"""Requests in, answers out: one thread that launches one unit of work at a time, for one request or a batch."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

from instantid.engine.admission import Admission
from instantid.engine.events import Delivery, Event, Listener, Load
from instantid.engine.policy import Policy
from instantid.engine.task import Model, Task, Unit
from instantid.errors import Cancelled, DeviceFailure, EngineFailure, Overloaded, ServiceError

log = logging.getLogger(__name__)

EXPECTED_TIMES = 20
"""A unit of work may take this many times what the cost table says before it counts as late."""


class Launched(NamedTuple):
    """A unit of work that was launched and may still run; for the `finished` ones it is the last."""

    unit: Unit
    kind: str
    rows: int
    batch: list[Task]
    finished: list[Task]
    expected: float


@dataclass(eq=False)
class Engine:
    """Schedules tasks on one model, unit by unit; at most one unit runs behind the one that is being launched.

    `finish` turns a task whose phases are done into its answer, on the threads of `finishers`, beside the work.
    `clock` gives seconds and is the one that deadlines are counted in.
    """

    model: Model
    policy: Policy
    admission: Admission
    finish: Callable[[Task], Any]
    _: KW_ONLY
    finishers: Executor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="finish"))
    listeners: Sequence[Listener] = ()
    inline_events: bool = False
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._events = Delivery(self.listeners, self.inline_events) if self.listeners else None
        self._in_flight: Launched | None = None
        self._late_at = math.inf
        self._broken: DeviceFailure | None = None

    def submit(self, tasks: Iterable[Task]) -> None:
        """Queue tasks without waiting; those that are refused are answered at once."""
        for task in tasks:
            task.arrived = self.clock()
            with self._at_the_cost_of(task):
                task.work = task.remaining = self.policy.remaining(task)
                task.due = self.policy.due(task, self.admission.tasks)
                self.admission.admit(task)
                self._tell("queued", [task])

    def wait_for_room(self) -> None:
        """Return once every task is started or will be at the next tick; later ones queue in front of the engine."""
        self.admission.wait_for_room()

    def cancel(self, request_id: str) -> None:
        """End the request of this id at the next tick; unknown ids are ignored."""
        for task in self.admission.tasks:
            task.cancelled |= bool(request_id) and task.request_id == request_id

    def poll_cancelled(self) -> None:
        """Ask for every task whether its caller has cancelled; for a thread that does so every few tens of ms."""
        for task in self.admission.tasks:
            try:
                task.cancelled |= task.answer.ask(task.is_cancelled)
            except Exception:
                log.exception(
                    "request %(request_id)r cannot be asked and counts as cancelled", {"request_id": task.request_id}
                )
                task.cancelled = True

    def run(self) -> None:
        """Work until closed; every task that is left then is answered with an error.

        Raises DeviceFailure when the device cannot be used any more.
        """
        try:
            while self.admission.wait_for_tasks():
                self.step()
        finally:
            self.close()

    def step(self) -> None:
        """One tick: drop ended requests, start those that fit, launch one unit of work, settle the one before it."""
        self._late_at = self._expected_end()
        try:
            self._drop_ended()
            self._start_waiting()
            launched = self._launch(self._pick())
        except Exception as error:  # noqa: BLE001
            launched = None
            self._expel(error)
        self._settle()
        self._in_flight = launched
        if launched and (launched.unit.done or not self.admission.tasks):
            self._settle()
        self._late_at = self._expected_end() if self._in_flight else math.inf
        if self._broken:
            raise self._broken

    def close(self) -> None:
        """Stop working and answer everything that is unanswered."""
        for task in self.admission.close():
            self._answer(task, self._broken or Overloaded("the server is stopping"))
        self.finishers.shutdown(wait=True)
        if self._events:
            self._events.close()

    @property
    def lateness(self) -> float:
        """Seconds that the work in flight has taken beyond any expectation; 0 or less in good order."""
        return self.clock() - self._late_at

    @property
    def load(self) -> Load:
        started = self.admission.started
        backlog = sum(task.remaining for task in self.admission.tasks)
        return Load(len(started), sum(task.plan.rows for task in started), backlog)

    def _expected_end(self) -> float:
        return self.clock() + EXPECTED_TIMES * (self._in_flight.expected if self._in_flight else 0.0)

    def _drop_ended(self) -> None:
        for task in self.admission.tasks:
            if task.cancelled or (task.deadline is not None and self.clock() >= task.deadline):
                reason = "cancelled by the caller" if task.cancelled else "deadline_ms: the deadline passed"
                left, units = (sum(phase.count for phase in phases) for phases in (task.left, task.plan.phases))
                self._fail(task, Cancelled(f"{reason} with {left} of {units} units of work left"))

    def _start_waiting(self) -> None:
        self.policy.keep_accounts(self.admission.tasks, self.clock())
        while (waiting := self.admission.waiting) and not self._broken:
            task = self.policy.first(waiting, self.clock())
            if not self.admission.fits(task):
                return
            with self._at_the_cost_of(task):
                self.admission.start(task, self.model.start(task.request, task.given))
                self._tell("started", [task])

    def _pick(self) -> list[Task]:
        tasks = [task for task in self.admission.started if task.left]
        if not tasks:
            return []
        batch = self.policy.pick(tasks, self.clock())
        self.policy.charge(batch)
        return batch

    def _expel(self, error: Exception) -> None:
        """Policy or admission raised: end the tasks for which they do so, or else the last one; nothing is launched."""
        tasks = self.admission.tasks
        for task in tasks:
            with self._at_the_cost_of(task):
                self.policy.keep_accounts([task], self.clock())
                self.admission.fits(self.policy.first([task], self.clock()))
        if tasks and self.admission.tasks == tasks:
            self._fail(tasks[-1], error)

    def _launch(self, batch: list[Task]) -> Launched | None:
        """Launch a unit for the batch; where that raises, and so nothing has advanced, for each of the batch alone."""
        if not batch:
            return None
        kind, rows = batch[0].left[0].kind, sum(task.left[0].rows for task in batch)
        try:
            expected = self.policy.seconds(batch)
            self._late_at += EXPECTED_TIMES * expected
            unit = self.model.work(kind, [task.state for task in batch])
        except Exception as error:  # noqa: BLE001
            if len(batch) == 1 or isinstance(error, DeviceFailure):
                self._fail(batch[0], error)
                return None
            log.warning("a unit of %d requests failed (%s); running each alone", len(batch), error)
            if isinstance(error, Overloaded):
                self.policy.costs.limit(kind, batch[0].plan.group, rows)
            for task in batch:
                self._settle()
                self._in_flight = self._launch([task]) if task.state and not self._broken else None
            return None
        for task in batch:
            with self._at_the_cost_of(task):
                task.advance()
                task.remaining = self.policy.remaining(task)
        return Launched(unit, kind, rows, batch, [task for task in batch if not task.left], expected)

    def _settle(self) -> None:
        """Wait for the unit in flight; end the tasks that failed in it, hand over those that are finished."""
        launched, self._in_flight = self._in_flight, None
        if launched is None:
            return
        with self._at_the_cost_of(*launched.batch):
            seconds = launched.unit.wait()
            self._tell("worked", launched.batch, seconds=seconds, kind=launched.kind, rows=launched.rows)
            for task in launched.batch:
                state = task.state
                if state and state.failure:
                    self._fail(task, state.failure)
                elif state and task in launched.finished:
                    self.admission.leave(task)
                    self.finishers.submit(self._finish_and_answer, task)

    def _finish_and_answer(self, task: Task) -> None:
        with self._at_the_cost_of(task):
            self._answer(task, self.finish(task))
        task.state = None

    @contextmanager
    def _at_the_cost_of(self, *tasks: Task) -> Iterator[None]:
        """An exception in the block ends these tasks and nothing else."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            for task in tasks:
                self._fail(task, error)

    def _fail(self, task: Task, error: Exception) -> None:
        self.admission.leave(task)
        task.state = None
        if isinstance(error, DeviceFailure):
            self._broken = error
        if not isinstance(error, ServiceError):
            log.error("request %(request_id)r failed", {"request_id": task.request_id}, exc_info=error)
            error = EngineFailure("the picture could not be made; the server's log has the reason")
        self._answer(task, error)

    def _answer(self, task: Task, outcome: Any) -> None:
        try:
            if task.answer.give(outcome):
                self._tell("ended", [task], seconds=self.clock() - task.arrived, outcome=outcome)
        except Exception:
            log.exception("request %(request_id)r could not be answered", {"request_id": task.request_id})

    def _tell(self, name: str, tasks: Sequence[Task], **facts: Any) -> None:
        if self._events:
            self._events.tell(Event(name, tasks, self.load, at=self.clock(), **facts))
