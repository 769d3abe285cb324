"""Requests in, pictures out: one thread that runs one step at a time."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from instantid.engine.observer import Observer, Silent
from instantid.engine.policy import Policy
from instantid.engine.task import Denoiser, Task
from instantid.errors import Cancelled, EngineFailure, ServiceError

log = logging.getLogger(__name__)

Encode = Callable[[Any, Any], Any]
"""Turns (job, what `Denoiser.finish` gave) into the answer; runs on threads beside the steps."""


class Engine:
    """Schedules tasks on one denoiser, step by step.

    `max_rows` bounds the rows of all started requests, which is what bounds memory. `clock` gives seconds and is
    the one that deadlines are counted in.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        policy: Policy,
        encode: Encode,
        *,
        max_rows: int,
        encoders: Executor | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._denoiser = denoiser
        self._policy = policy
        self._encode = encode
        self._max_rows = max_rows
        self._clock = clock
        self._encoders = encoders or ThreadPoolExecutor(2, thread_name_prefix="encode")
        self._observer = observer or Silent()
        self._tick_began: float | None = None
        self._changed = threading.Condition()
        self._waiting: list[Task] = []
        self._active: list[Task] = []
        self._cancelled: set[str] = set()
        self._closed = False

    def submit(self, tasks: Iterable[Task]) -> None:
        """Take tasks in; returns once each has been started or has ended, so that later ones queue in Triton."""
        tasks = list(tasks)
        self.offer(tasks)
        with self._changed:
            self._changed.wait_for(lambda: not any(task in self._waiting for task in tasks))

    def offer(self, tasks: Iterable[Task]) -> None:
        """Take tasks in without waiting for room."""
        tasks = list(tasks)
        for task in tasks:
            task.arrived = self._clock()
        with self._changed:
            if not self._closed:
                self._waiting.extend(tasks)
                self._changed.notify_all()
                return
        self._end(tasks, EngineFailure("the server is stopping"))

    def cancel(self, request_id: str) -> None:
        """End the request of this id at the next step boundary; unknown ids are ignored."""
        self._cancelled |= {request_id} & {task.request_id for task in self._tasks() if task.request_id}

    def run(self) -> None:
        """Step until closed; every task that is left then is answered with an error."""
        try:
            while self._await_work():
                self._tick_began = self._clock()
                self.step()
                self._tick_began = None
        finally:
            self.close()

    def step(self) -> None:
        """One tick: drop who gave up, start who fits, run one step of one batch, hand on what is finished."""
        self._drop_ended()
        self._admit()
        if self._active:
            batch = self._policy.pick(self._active, self._clock())
            self._advance(batch)
            self._hand_on(batch)

    def close(self) -> None:
        """Stop stepping and answer everything that is unanswered."""
        with self._changed:
            self._closed = True
            left = [*self._waiting, *self._active]
            self._waiting, self._active = [], []
            self._changed.notify_all()
        self._end(left, EngineFailure("the server is stopping"))
        self._encoders.shutdown(wait=True)

    @property
    def tick_seconds(self) -> float:
        """How long the tick that runs now has taken; 0 between ticks."""
        began = self._tick_began
        return 0.0 if began is None else self._clock() - began

    @property
    def idle(self) -> bool:
        with self._changed:
            return not self._waiting and not self._active

    def _tasks(self) -> list[Task]:
        with self._changed:
            return [*self._waiting, *self._active]

    def _await_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._active)
            return not self._closed

    def _drop_ended(self) -> None:
        now = self._clock()
        for task in self._tasks():
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
        with self._changed:
            self._policy.keep_accounts({task.tenant for task in (*self._waiting, *self._active)})
        while self._waiting:
            rows = sum(active.rows for active in self._active)
            if self._active and rows >= self._max_rows:
                return
            task = self._policy.first(self._waiting, self._clock())
            if self._active and rows + task.rows > self._max_rows:
                return
            self._start(task)

    def _start(self, task: Task) -> None:
        try:
            task.state = self._denoiser.start(task.job)
        except Exception as error:  # noqa: BLE001 - one request's failure must not end the others
            self._fail(task, error)
            return
        with self._changed:
            self._waiting.remove(task)
            self._active.append(task)
            self._changed.notify_all()

    def _advance(self, batch: list[Task]) -> None:
        self._policy.charge(batch)
        began = self._clock()
        try:
            self._denoiser.step([task.state for task in batch])
        except Exception as error:  # noqa: BLE001
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            log.warning("a step of %d requests failed (%s); running each alone", len(batch), error)
            for task in batch:
                self._advance([task])
        else:
            self._tell(self._observer.stepped, batch, self._clock() - began, len(self._active))

    def _hand_on(self, batch: Collection[Task]) -> None:
        for task in batch:
            if task.state is None:
                continue
            if task.state.failure is not None:
                self._fail(task, task.state.failure)
            elif task.state.steps_left == 0:
                self._finish(task)

    def _finish(self, task: Task) -> None:
        try:
            pictures = self._denoiser.finish(task.state)
            self._remove(task)
            self._encoders.submit(self._encode_and_answer, task, pictures)
        except Exception as error:  # noqa: BLE001
            self._fail(task, error)

    def _encode_and_answer(self, task: Task, pictures: Any) -> None:
        try:
            self._answer(task, self._encode(task.job, pictures))
        except Exception as error:  # noqa: BLE001
            self._fail(task, error)

    def _fail(self, task: Task, error: Exception) -> None:
        self._remove(task)
        if not isinstance(error, ServiceError):
            log.error("request %r failed", task.request_id, exc_info=error)
            error = EngineFailure("the picture could not be made; the server's log has the reason")
        self._answer(task, error)

    def _answer(self, task: Task, outcome: Any) -> None:
        if task.answer.give(outcome):
            self._tell(self._observer.ended, task, outcome, self._clock() - task.arrived, len(self._active))

    @staticmethod
    def _tell(observer: Callable[..., None], *facts: Any) -> None:
        try:
            observer(*facts)
        except Exception:
            log.exception("an observer failed")

    def _remove(self, task: Task) -> None:
        with self._changed:
            for tasks in (self._waiting, self._active):
                if task in tasks:
                    tasks.remove(task)
            self._cancelled.discard(task.request_id)
            task.state = None
            self._changed.notify_all()

    def _end(self, tasks: Iterable[Task], error: ServiceError) -> None:
        for task in tasks:
            self._answer(task, error)
