"""What the engine tells whoever counts: steps, and how requests ended."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from instantid.engine.task import Task


class Load(NamedTuple):
    """Requests and rows that are started, and the seconds of work of everyone who is here."""

    active: int
    rows: int
    backlog: float


class Observer(Protocol):
    """Called from the engine's threads; must be quick and must not raise."""

    def stepped(self, batch: Sequence[Task], seconds: float, load: Load) -> None:
        """One step of a batch took `seconds`; `load` is what is left."""

    def ended(self, task: Task, outcome: Any, seconds: float, load: Load) -> None:
        """A request was answered, with a result or an exception, `seconds` after it came in."""
