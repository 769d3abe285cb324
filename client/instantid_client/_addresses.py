"""Which of several servers is called next."""

import threading
import time
from collections.abc import Callable, Collection, Sequence

LONGEST_REST = 30.0


class Addresses:
    """Round robin over the servers that could be reached; one that could not rests 1, 2, 4 .. 30 seconds.

    If all rest, the one that has rested longest is called. Safe for threads.
    """

    def __init__(self, addresses: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.all = tuple(dict.fromkeys(addresses))
        self._clock = clock
        self._next = 0
        self._failures = dict.fromkeys(self.all, 0)
        self._until = dict.fromkeys(self.all, 0.0)
        self._lock = threading.Lock()

    def pick(self, tried: Collection[str] = ()) -> str | None:
        """The next in turn that was not tried yet, or None if all were."""
        with self._lock:
            turn = self.all[self._next :] + self.all[: self._next]
            left = [address for address in turn if address not in tried]
            if not left:
                return None
            now = self._clock()
            awake = [address for address in left if self._until[address] <= now]
            chosen = awake[0] if awake else min(left, key=self._until.__getitem__)
            self._next = (self.all.index(chosen) + 1) % len(self.all)
            return chosen

    def failed(self, address: str) -> None:
        with self._lock:
            rest = min(2.0 ** self._failures[address], LONGEST_REST)
            self._failures[address] += 1
            self._until[address] = self._clock() + rest

    def worked(self, address: str) -> None:
        with self._lock:
            self._failures[address] = 0
            self._until[address] = 0.0
