"""Calling again after what is safe to call again after. Off unless asked for."""

import random
import threading
from dataclasses import dataclass

from instantid_client.errors import InstantIDError, InvalidArgument, Overloaded, Unreachable

LARGEST_CREDIT = 10.0


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a request is sent again: only after `Overloaded`, and after `Unreachable` if it never left.

    At most `attempts` calls for one request. The waits double from `initial` to `maximum` seconds with full jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and are never shorter than the hint
    of the server, nor longer than the time that is left: then the error is raised at once. All requests of a client
    share a budget: `attempts - 1` retries, and `budget` more for each request, so that clients of a full server add
    at most that share to its load.
    """

    attempts: int = 3
    initial: float = 0.5
    maximum: float = 20.0
    budget: float = 0.2

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 < self.initial <= self.maximum or not 0 <= self.budget <= 1:
            raise InvalidArgument(f"retries: {self}; must have attempts >= 1, 0 < initial <= maximum, budget in 0..1")


class Budget:
    """The retries that the requests of one client may still make; safe for threads."""

    def __init__(self, retry: Retry | None) -> None:
        self._share = retry.budget if retry else 0.0
        self._credit = float(retry.attempts - 1) if retry else 0.0
        self._lock = threading.Lock()

    def earn(self) -> None:
        with self._lock:
            self._credit = max(self._credit, min(self._credit + self._share, LARGEST_CREDIT))

    def spend(self) -> bool:
        with self._lock:
            if self._credit < 1:
                return False
            self._credit -= 1
            return True


class RetryPlan:
    """The waits of one request."""

    def __init__(self, retry: Retry | None, budget: Budget) -> None:
        self._retry = retry or Retry(attempts=1)
        self._budget = budget
        self._attempt = 1
        budget.earn()

    def pause_after(self, error: InstantIDError, left: float) -> float | None:
        """Seconds to wait before the next attempt, or None if there is none; `left` seconds remain."""
        if self._attempt >= self._retry.attempts or not is_safe(error):
            return None
        ceiling = min(self._retry.initial * 2 ** (self._attempt - 1), self._retry.maximum)
        pause = (error.retry_after or 0.0) + random.uniform(0, ceiling)
        if pause >= left or not self._budget.spend():
            return None
        self._attempt += 1
        return pause


def is_safe(error: InstantIDError) -> bool:
    """Whether the server cannot have begun the work."""
    return isinstance(error, Overloaded) or (isinstance(error, Unreachable) and not error.sent)
