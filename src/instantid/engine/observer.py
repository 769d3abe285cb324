"""What the engine tells whoever counts: steps, and how requests ended."""

from collections.abc import Sequence
from typing import Any, Protocol

from instantid.engine.task import Task


class Observer(Protocol):
    """Called from the engine's threads; must be quick and must not raise."""

    def stepped(self, batch: Sequence[Task], seconds: float, active: int) -> None:
        """One step of a batch took `seconds`; `active` requests are started."""

    def ended(self, task: Task, outcome: Any, seconds: float, active: int) -> None:
        """A request was answered, with a result or an exception, `seconds` after it came in."""


class Silent:
    """Counts nothing."""

    def stepped(self, batch: Sequence[Task], seconds: float, active: int) -> None: ...

    def ended(self, task: Task, outcome: Any, seconds: float, active: int) -> None: ...
