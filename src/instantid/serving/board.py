"""What the processes of one Triton server tell each other: that they live, how much work they have, whose turn it is.

Each server has a folder in shared memory that only its user can enter. In it a table has a row for each instance of a
Python model, and each instance a Unix datagram socket by which the others wake it.

Triton never notices a process that is dead or stuck: health stays 200 and callers wait for ever. So each process writes
the time into its row while it is alive and watches all rows. When one grows old the server is told to stop, and killed
if it cannot; whoever started it (Kubernetes, compose, our supervisor) starts it again.

Triton gives a request to any instance whose execute() has returned, whatever work each still has. So an instance with
work stays in execute() until it has least: an instance is `open` to Triton, `taking` a request, or `waiting` to open.
"""

import contextlib
import fcntl
import logging
import math
import mmap
import os
import select
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

Number = Callable[[], float]

FOLDER = Path("/dev/shm")
ROWS = 128
ROW = np.dtype([("name", "S64"), ("beat", "f8"), ("backlog", "f8"), ("state", "i8"), ("taken", "f8")])
"""`beat` and `taken` are in seconds of the clock; `beat` is 0 before the first."""
OPEN, TAKING, WAITING = range(3)

BEAT_SECONDS = 0.5
STALE_SECONDS = 2.5
DRAIN_SECONDS = 3.0
"""A step is stuck after three seconds (a setting), its row stale after another three, two looks included, and the
server has three to drain: it is gone within ten."""

PATIENCE_SECONDS = 1.0
"""An instance that took a request this long ago and is not back has no room: the others no longer wait for it."""


def server_folder(server: int) -> Path:
    """The folder of the Triton server with this process id; its start time tells it from an earlier one's.

    Raises FileNotFoundError if there is no such process.
    """
    started = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[19]
    return FOLDER / f"instantid-{server}-{started}"


def end_server(instance: str) -> None:
    """Stop the Triton server that runs this process: SIGTERM, and SIGKILL if it is still there later."""
    server = os.getppid()
    log.error("%s does not answer any more; stopping the server", instance)
    os.kill(server, signal.SIGTERM)
    time.sleep(DRAIN_SECONDS)
    if os.getppid() == server:
        os.kill(server, signal.SIGKILL)


class Board:
    """One instance's row in the table of its server, until `close`.

    `name` is Triton's name of the instance, MODEL_GROUP_NUMBER; those of one MODEL share its requests. `backlog` gives
    the seconds of work that this instance has. `clock` must be one for all processes, as `time.monotonic` is.

    Raises PermissionError if others can enter the folder, RuntimeError if the table is full.
    """

    def __init__(self, folder: Path, name: str, backlog: Number = lambda: 0.0, clock: Number = time.monotonic) -> None:
        self._folder, self._backlog, self._clock = folder, backlog, clock
        self._model = name.rsplit("_", 2)[0].encode()
        self._file = _open_table(folder)
        self._table = np.frombuffer(mmap.mmap(self._file, ROWS * ROW.itemsize), ROW)
        with self._locked():
            free = np.flatnonzero(self._table["name"] == b"")
            if not free.size:
                raise RuntimeError(f"{folder}: more than {ROWS} instances")
            self._index = int(free[0])
            self._row = self._table[self._index]
            self._row["name"] = name
        self._socket = self._bind()
        self._storing = threading.Lock()
        self._woken = threading.Event()
        self._closed = False
        self._looked = clock()
        self._suspects: set[str] = set()
        self._thread: threading.Thread | None = None

    def start(self, is_alive: Callable[[], bool] = lambda: True, end: Callable[[str], None] = end_server) -> None:
        """Beat while `is_alive()`, and call `end` with the name of an instance that does so no more."""

        def run() -> None:
            while not self._closed:
                self.beat(is_alive)
                for name in self.look():
                    end(name)
                self._listen(self._clock() + BEAT_SECONDS)

        self._thread = threading.Thread(target=run, name="board", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the row back; the last one removes the folder."""
        self._closed = True
        if self._thread:
            self._wake(self._index)
            self._thread.join()
        self._socket.close()
        self._path(self._index).unlink(missing_ok=True)
        with self._locked():
            self._table[self._index] = self._row = np.zeros((), ROW)
            if not any(self._table["name"]):
                shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._file)

    def beat(self, is_alive: Callable[[], bool] = lambda: True) -> None:
        if is_alive():
            self._row["beat"] = self._clock()

    def look(self) -> list[str]:
        """Instances whose row is stale for the second look in a row.

        A look that comes late sees nothing: the whole machine was paused, and the others could not beat either.
        """
        now = self._clock()
        late = now - self._looked > 2 * BEAT_SECONDS
        self._looked = now
        beats = self._table["beat"]
        stale = self._table["name"][(beats > 0) & (now - beats > STALE_SECONDS)]
        found = set() if late else {name.decode() for name in stale}
        confirmed = sorted(found & self._suspects)
        self._suspects = found
        return confirmed

    def refresh(self) -> None:
        """Write this instance's backlog into its row; to be called whenever it has changed. Any thread may."""
        self._store()
        if self._row["state"] == WAITING:
            self._woken.set()

    def take(self) -> None:
        """This instance has been given a request, which its backlog counts; another may open instead."""
        with self._locked():
            self._row["state"], self._row["taken"] = TAKING, self._clock()
            self._store()
            waiting = [i for i in self._siblings() if self._table[i]["state"] == WAITING]
        for index in waiting:
            self._wake(index)

    def wait_turn(self) -> None:
        """Returns once the next request may go to this instance."""
        while not self.try_open():
            self._woken.wait(PATIENCE_SECONDS)

    def try_open(self) -> bool:
        """Open if this instance has no work, or less than any that is open and least of those about to open."""
        self._woken.clear()
        with self._locked():
            self._store()
            opens = self._has_least()
            self._row["state"] = OPEN if opens else WAITING
        return opens

    def _store(self) -> None:
        with self._storing:
            self._row["backlog"] = self._backlog()

    def _has_least(self) -> bool:
        mine = (self._row["backlog"], self._index)
        return not mine[0] or all(mine < self._bid(index) for index in self._siblings())

    def _bid(self, index: int) -> tuple[float, int]:
        row = self._table[index]
        full = row["state"] == TAKING and self._clock() - row["taken"] > PATIENCE_SECONDS
        return (math.inf if full else row["backlog"]), -1 if row["state"] == OPEN else index

    def _siblings(self) -> list[int]:
        """Rows of the same model whose processes are ready and alive."""
        living = np.flatnonzero(self._table["beat"] > self._clock() - STALE_SECONDS)
        models = {int(i): self._table[i]["name"].rsplit(b"_", 2)[0] for i in living if i != self._index}
        return [i for i, model in models.items() if model == self._model]

    def _listen(self, until: float) -> None:
        while (left := until - self._clock()) > 0 and not self._closed:
            if select.select([self._socket], [], [], left)[0]:
                self._socket.recv(1)
                self._woken.set()

    def _wake(self, index: int) -> None:
        """A socket that is gone or full needs no message: its process has ended, or has others to read."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"", str(self._path(index)))

    def _bind(self) -> socket.socket:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bound.setblocking(False)
        self._path(self._index).unlink(missing_ok=True)
        bound.bind(str(self._path(self._index)))
        return bound

    def _path(self, index: int) -> Path:
        return self._folder / str(index)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Between processes; the kernel opens it when its holder dies."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _open_table(folder: Path) -> int:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    file = os.open(folder / "table", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(file, ROWS * ROW.itemsize)
    return file
