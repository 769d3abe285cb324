"""Admission control: waiting and running requests. Shared by callers' threads and the engine's."""

import math
import threading
from collections.abc import Sequence

from instantid.engine.task import UNNAMED, State, Task
from instantid.errors import InvalidArgument, Overloaded


class Admission:
    """Bounds rows and bytes of all started requests, and the rows of each tenant that names itself.

    `max_rows` and `max_bytes` bound the started requests; `tenant_rows` bounds those of one tenant, started or
    waiting, the first request included. Requests that name no tenant are bounded by Triton's queue alone.
    """

    def __init__(self, max_rows: int, max_bytes: float = math.inf, tenant_rows: int | None = None) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.tenant_rows = tenant_rows or max_rows
        self._changed = threading.Condition()
        self._tasks: list[Task] = []
        self._closed = False

    @property
    def tasks(self) -> list[Task]:
        with self._changed:
            return list(self._tasks)

    @property
    def waiting(self) -> list[Task]:
        return [task for task in self.tasks if task.state is None]

    @property
    def started(self) -> list[Task]:
        return [task for task in self.tasks if task.state is not None]

    def admit(self, task: Task) -> None:
        """Let a task wait for its start. Raises Overloaded or InvalidArgument where it is refused."""
        with self._changed:
            if self._closed:
                raise Overloaded("the server is stopping")
            held = sum(other.plan.rows for other in self._tasks if other.tenant == task.tenant)
            if task.tenant != UNNAMED and held + task.plan.rows > self.tenant_rows:
                limit = f"limit for one tenant is {self.tenant_rows} rows (a picture takes 2 with guidance, 1 without)"
                asked = f"{task.tenant!r} has {held} rows in progress and asks for {task.plan.rows} more"
                raise Overloaded(f"tenant: {asked}; the {limit}") if held else InvalidArgument("tenant", asked, limit)
            self._tasks.append(task)
            self._changed.notify_all()

    def fits(self, task: Task) -> bool:
        """Whether a waiting task can be started now; one that is larger than a bound runs alone."""
        return self._hold([*self.started, task])

    def start(self, task: Task, state: State) -> None:
        with self._changed:
            task.state = state
            self._changed.notify_all()

    def leave(self, task: Task) -> None:
        with self._changed:
            self._tasks = [other for other in self._tasks if other is not task]
            self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Return once all tasks fit: those that wait are started at the next tick."""
        with self._changed:
            self._changed.wait_for(lambda: self._hold(self._tasks))

    def wait_for_tasks(self) -> bool:
        """Return True once there is a task, False once admission is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._tasks)
            return not self._closed

    def close(self) -> list[Task]:
        """Admit no more tasks; returns those that were here."""
        with self._changed:
            self._closed = True
            left, self._tasks = self._tasks, []
            self._changed.notify_all()
            return left

    def _hold(self, tasks: Sequence[Task]) -> bool:
        rows, size = (sum(getattr(task.plan, name) for task in tasks) for name in ("rows", "bytes"))
        return len(tasks) <= 1 or (rows <= self.max_rows and size <= self.max_bytes)
