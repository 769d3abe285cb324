"""Who is here: tasks that wait for room and tasks that were started. Shared by callers' threads and the engine's."""

import threading
from collections.abc import Iterable, Sequence

from instantid.engine.task import UNNAMED, Task
from instantid.errors import EngineFailure, Overloaded, ServiceError


class Room:
    """Bounds rows in memory, of all and of each tenant that names itself.

    `max_rows` bounds the rows of started tasks; `tenant_rows` those of one tenant, started or waiting. Callers that
    name no tenant are bounded by Triton's queue alone.
    """

    def __init__(self, max_rows: int, tenant_rows: int | None = None) -> None:
        self._max_rows = max_rows
        self._tenant_rows = tenant_rows or max_rows
        self._changed = threading.Condition()
        self._waiting: list[Task] = []
        self._started: list[Task] = []
        self._closed = False

    @property
    def waiting(self) -> list[Task]:
        with self._changed:
            return list(self._waiting)

    @property
    def started(self) -> list[Task]:
        with self._changed:
            return list(self._started)

    @property
    def tasks(self) -> list[Task]:
        with self._changed:
            return [*self._waiting, *self._started]

    def enter(self, task: Task) -> ServiceError | None:
        """Take a task in; returns why not where there is no place for it."""
        with self._changed:
            if self._closed:
                return EngineFailure("the server is stopping")
            held = sum(other.rows for other in (*self._waiting, *self._started) if other.tenant == task.tenant)
            if task.tenant != UNNAMED and held and held + task.rows > self._tenant_rows:
                return Overloaded(
                    f"tenant: {task.tenant!r} has {held} rows in work and asks for {task.rows} more; "
                    f"at most {self._tenant_rows} for one tenant (2 a picture with guidance, 1 without)"
                )
            self._waiting.append(task)
            self._changed.notify_all()
            return None

    def has_place(self, task: Task) -> bool:
        """Whether a waiting task may be started; one larger than the bound runs alone."""
        rows = sum(other.rows for other in self.started)
        return not rows or rows + task.rows <= self._max_rows

    def start(self, task: Task) -> None:
        with self._changed:
            self._waiting.remove(task)
            self._started.append(task)
            self._changed.notify_all()

    def leave(self, task: Task) -> None:
        with self._changed:
            for tasks in (self._waiting, self._started):
                if task in tasks:
                    tasks.remove(task)
            self._changed.notify_all()

    def wait_until_started(self, tasks: Sequence[Task]) -> None:
        """Returns once none of the tasks waits any more."""
        with self._changed:
            self._changed.wait_for(lambda: not any(task in self._waiting for task in tasks))

    def wait_for_tasks(self) -> bool:
        """Returns True once there is a task, False once the room is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._started)
            return not self._closed

    def close(self) -> Iterable[Task]:
        """Let nobody in any more; returns who was here."""
        with self._changed:
            self._closed = True
            left = [*self._waiting, *self._started]
            self._waiting, self._started = [], []
            self._changed.notify_all()
        return left
