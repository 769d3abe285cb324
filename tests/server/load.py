"""Callers that send small requests while something breaks, and what each of them gets."""

import io
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from PIL import Image

from instantid_client import AnswerMismatch, InstantIDClient, InstantIDError, Unreachable

CALLERS = 4
SMALL = {"num_inference_steps": 4, "width": 64, "height": 64}
SEEDS = range(6)
LARGEST_DIFFERENCE = 2
"""Of 255: between a picture painted alone and the same one in a batch with others."""
PAUSE = 0.5
SETTLED = 4
"""So many good answers in a row, after the last failure, show that the server serves again."""


@dataclass(frozen=True)
class Call:
    """What one call ended with, at `ended` seconds of the monotonic clock: "OK", "WRONG", or the error's class."""

    outcome: str
    began: float
    ended: float
    text: str = ""


def pixels(answer):
    return np.asarray(Image.open(io.BytesIO(answer.images[0]))).astype(np.int16)


@dataclass(frozen=True)
class Album:
    """Photos, and the picture that each of them has with each of SEEDS when nobody else is served."""

    photos: tuple[bytes, ...]
    alone: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)


@dataclass
class Load:
    """Callers of one server from `with` to its end; caller i uses photo i of the album in turn with each of SEEDS.

    Each answer's picture is compared with the one that the same request has alone, so that an answer which belongs
    to another request is WRONG; so is one with another's id, which the client refuses.
    """

    url: str
    album: Album
    callers: int = CALLERS
    timeout: float = 60.0
    calls: list[Call] = field(default_factory=list)

    def __enter__(self):
        for which in product(range(len(self.album.photos)), SEEDS):
            if which not in self.album.alone:
                self.album.alone[which] = pixels(self._generate(*which))
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(self.callers)]
        for thread in self._threads:
            thread.start()
        with ExitStack() as stack:
            stack.push(self.__exit__)
            self.wait_for_good(SETTLED, time.monotonic())
            stack.pop_all()
        return self

    def __exit__(self, *raised):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def wait_for_good(self, count, since, seconds=180.0):
        """Until so many good answers in a row have been given to calls that began after `since`."""
        until = time.monotonic() + seconds
        while self._good_in_a_row(since) < count:
            assert time.monotonic() < until, f"no good answers within {seconds} s: {self.outcomes(since)}"
            time.sleep(0.05)

    def outcomes(self, since=0.0):
        """How often each outcome was given after `since`."""
        return Counter(call.outcome for call in self.calls if call.ended >= since)

    def next_good(self, since):
        """Seconds from `since` to the first good answer after the last failure."""
        later = sorted((call for call in self.calls if call.ended >= since), key=lambda call: call.ended)
        failed = max((call.ended for call in later if call.outcome != "OK"), default=since)
        return next(call.ended for call in later if call.outcome == "OK" and call.ended >= failed) - since

    def usual(self, before):
        """Median seconds of the answers given before."""
        return float(np.median([call.ended - call.began for call in self.calls if call.ended < before]))

    def longest(self, since):
        """Seconds that the slowest of the calls in progress or begun after `since` took."""
        return max((call.ended - max(call.began, since) for call in self.calls if call.ended >= since), default=0.0)

    def _good_in_a_row(self, since):
        good = 0
        for call in reversed(self.calls):
            if call.outcome != "OK":
                break
            good += call.began >= since
        return good

    def _run(self, caller):
        turn = caller
        while not self._stopped.is_set():
            call = self._call(caller % len(self.album.photos), SEEDS[turn % len(SEEDS)])
            self.calls.append(call)
            turn += 1
            if call.outcome != "OK":
                self._stopped.wait(PAUSE)

    def _call(self, photo, seed):
        began = time.monotonic()
        try:
            difference = np.abs(pixels(self._generate(photo, seed)) - self.album.alone[photo, seed]).max()
        except InstantIDError as error:
            outcome = "WRONG" if isinstance(error, AnswerMismatch) else type(error).__name__
            return Call(outcome, began, time.monotonic(), str(error))
        return Call("OK" if difference <= LARGEST_DIFFERENCE else "WRONG", began, time.monotonic(), f"{difference}")

    def _generate(self, photo, seed):
        """With a connection of its own: gRPC would wait ever longer before it tries a lost one again."""
        with InstantIDClient(self.url, timeout=self.timeout) as client:
            return client.generate(self.album.photos[photo], "a portrait", seed=seed, **SMALL)


def is_ready(url):
    with InstantIDClient(url, timeout=5) as client:
        try:
            return client.health(2.0).model_ready
        except (Unreachable, InstantIDError):
            return False
