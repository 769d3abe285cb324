"""Sends a request to the instance that will be free first.

Triton gives a request to any instance whose execute() has returned, in turn, whatever work each still has. So an
instance tells the others of its server how many seconds of work it has, and stays away from Triton while another has
less: the next request then goes to the other one.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.005
LONGEST_WAIT = 60.0
"""Seconds; whatever a sibling's file says, an instance comes back to Triton after that."""


class Siblings:
    """One file for each instance of a server in `folder`, holding its seconds of work."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(exist_ok=True)
        self._file = folder / name
        self.publish(0.0)

    def publish(self, backlog: float) -> None:
        self._file.write_text(f"{backlog:.6f}")

    def least(self) -> float:
        """Seconds of work of the sibling that has least; infinite where there is none."""
        found = float("inf")
        for file in self._file.parent.iterdir():
            if file != self._file:
                with contextlib.suppress(FileNotFoundError, ValueError):
                    found = min(found, float(file.read_text()))
        return found

    def wait_turn(self, backlog: Callable[[], float]) -> None:
        """Returns once no sibling has less work than this one, or after LONGEST_WAIT."""
        end = time.monotonic() + LONGEST_WAIT
        while backlog() > self.least() and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        self._file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file.parent.rmdir()
