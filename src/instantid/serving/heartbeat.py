"""Ends a server one of whose engines is dead or stuck; Triton itself never notices (TRITON: health stays 200).

Each engine's process touches a file as long as its engine makes progress. Every Python model of the server watches
all of them. A file that grows old means that callers wait for ever, so the server is told to stop, and killed if
it cannot; whoever started it (Kubernetes, compose, our supervisor) starts it again.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
BEAT_SECONDS = 0.5
STALE_SECONDS = 3.0
DRAIN_SECONDS = 3.0
"""A step is stuck after three seconds (a setting), its heartbeat old after three more, and the server has three to
drain: it is gone within ten."""


def server_folders(server: int) -> tuple[Path, Path]:
    """Where the engines of the Triton server with this process id leave their heartbeats, and their backlogs."""
    return FOLDER / f"instantid-{server}", FOLDER / f"instantid-{server}-backlog"


class Heartbeat:
    """Touches this instance's file while `is_alive()`; `close` removes it."""

    def __init__(self, folder: Path, name: str, is_alive: Callable[[], bool]) -> None:
        folder.mkdir(exist_ok=True)
        self._file = folder / name
        self._is_alive = is_alive
        self._closed = threading.Event()
        self._file.touch()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file.parent.rmdir()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            if self._is_alive():
                self._file.touch()


class Watch:
    """Looks at all heartbeats of a server and ends it when one has stopped."""

    def __init__(self, folder: Path, end: Callable[[str], None]) -> None:
        self._folder = folder
        self._end = end
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            for name in stale(self._folder, time.time()):
                (self._folder / name).unlink(missing_ok=True)
                self._end(name)


def stale(folder: Path, now: float) -> list[str]:
    """Names of the instances whose last beat is too old; `now` is in seconds of the file system's clock."""
    old = []
    for file in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if now - file.stat().st_mtime > STALE_SECONDS:
                old.append(file.name)
    return old


def end_server(instance: str) -> None:
    """Stop the Triton server that runs this process: SIGTERM, and SIGKILL if it is still there later."""
    server = os.getppid()
    log.error("%s does not answer any more; stopping the server", instance)
    os.kill(server, signal.SIGTERM)
    time.sleep(DRAIN_SECONDS)
    if os.getppid() == server:
        os.kill(server, signal.SIGKILL)
