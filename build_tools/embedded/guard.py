"""The process between us and tritonserver: `python -m build_tools.embedded.guard SPEC.json`.

It starts tritonserver, starts it again if it is told to, and ends it, its stubs and its shared memory when it is
signalled or when the process that wanted the server is gone, however that one died.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from instantid.serving.board import server_folder

POLL_SECONDS = 0.2
EXIT_MARGIN_SECONDS = 10.0
LONG_RUN_SECONDS = 60.0
MOST_FAILURES = 5
LONGEST_PAUSE_SECONDS = 30.0
SHARED_MEMORY = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class GuardSpec:
    """`parent` is the process id whose end ends the server; `address` is the gRPC port that shows it is ready."""

    command: Sequence[str]
    log: str
    state: str
    shm_prefix: str
    address: tuple[str, int]
    parent: int
    exit_timeout: float
    supervise: bool

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "GuardSpec":
        fields = json.loads(path.read_text())
        return cls(**{**fields, "address": tuple(fields["address"])})


@dataclass(slots=True)
class GuardState:
    """What the guard tells its caller; `starts` counts from 1."""

    pid: int = 0
    ready: bool = False
    starts: int = 0

    def save(self, path: str) -> None:
        partial = Path(f"{path}.partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(path)


def pause_before_restart(failures: int) -> float | None:
    """Seconds to wait after `failures` short runs in a row (1, 2, 4 ... 30); None: give up."""
    if failures > MOST_FAILURES:
        return None
    return min(LONGEST_PAUSE_SECONDS, 2.0 ** max(0, failures - 1))


def remove_shared_memory(prefix: str) -> list[str]:
    """Delete the regions that a server with this prefix left in /dev/shm; returns their names."""
    left = [path for path in SHARED_MEMORY.glob(f"{prefix}*") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]


def sweep(spec: Path) -> None:
    """Remove what the server of this spec left in shared memory, where its guard was killed before it could."""
    if not spec.is_file():
        return
    left = GuardSpec.load(spec)
    remove_shared_memory(left.shm_prefix)
    with contextlib.suppress(FileNotFoundError):
        server = GuardState(**json.loads(Path(left.state).read_text())).pid
        for board in SHARED_MEMORY.glob(f"instantid-{server}-*"):
            shutil.rmtree(board, ignore_errors=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


@dataclass(slots=True)
class Guard:
    spec: GuardSpec
    state: GuardState = field(default_factory=GuardState)
    stopping: bool = False

    def run(self) -> int:
        """Exit code of the last tritonserver (128 + signal if one ended it)."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        failures = 0
        while True:
            began = time.monotonic()
            code = self._run_once()
            failures = 1 if time.monotonic() - began > LONG_RUN_SECONDS else failures + 1
            if not self._may_restart() or not self._pause(code, failures):
                return 128 - code if code < 0 else code

    def _run_once(self) -> int:
        process = subprocess.Popen(
            list(self.spec.command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            bufsize=0, start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip
        writer = threading.Thread(target=self._write_log, args=(process.stdout,), daemon=True)
        writer.start()
        board = server_folder(process.pid)
        self._tell(pid=process.pid, ready=False, starts=self.state.starts + 1)
        try:
            self._watch(process)
            return self._end(process)
        finally:
            _kill_group(process.pid)
            process.wait()
            writer.join(POLL_SECONDS)
            remove_shared_memory(self.spec.shm_prefix)
            shutil.rmtree(board, ignore_errors=True)

    def _write_log(self, output: IO[bytes]) -> None:
        """What does not fit on the disk is lost. Were the log the server's own file, a model that shows its progress
        would fail there."""
        while lines := output.read(1 << 16):
            with contextlib.suppress(OSError), open(self.spec.log, "ab", 0) as log:
                log.write(lines)

    def _watch(self, process: subprocess.Popen) -> None:
        while process.poll() is None and not self._must_stop():
            if not self.state.ready:
                self._probe()
            time.sleep(POLL_SECONDS)

    def _end(self, process: subprocess.Popen) -> int:
        process.terminate()
        try:
            return process.wait(self.spec.exit_timeout + EXIT_MARGIN_SECONDS)
        except subprocess.TimeoutExpired:
            self._log("tritonserver outlived its exit timeout and is killed")
            _kill_group(process.pid)
            return process.wait()

    def _probe(self) -> None:
        """Triton lets every user read its regions, whatever the umask; before it is ready they hold no photo."""
        with contextlib.suppress(OSError):
            socket.create_connection(self.spec.address, timeout=0.5).close()
            for region in SHARED_MEMORY.glob(f"{self.spec.shm_prefix}*"):
                region.chmod(0o600)
            self._tell(ready=True)

    def _must_stop(self) -> bool:
        self.stopping = self.stopping or os.getppid() != self.spec.parent
        return self.stopping

    def _may_restart(self) -> bool:
        first_start_failed = self.state.starts == 1 and not self.state.ready
        return self.spec.supervise and not self._must_stop() and not first_start_failed

    def _pause(self, code: int, failures: int) -> bool:
        seconds = pause_before_restart(failures)
        if seconds is None:
            self._log(f"tritonserver ended (exit code {code}) {failures} times in a row; giving up")
            return False
        self._log(f"tritonserver ended (exit code {code}); starting it again in {seconds:g} s")
        self._tell(pid=0, ready=False)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._must_stop():
            time.sleep(POLL_SECONDS)
        return not self.stopping

    def _tell(self, **changes: int) -> None:
        """Neither a state nor a log that cannot be written, on a full disk, ends the server."""
        for name, value in changes.items():
            setattr(self.state, name, value)
        with contextlib.suppress(OSError):
            self.state.save(self.spec.state)

    def _log(self, message: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(OSError), open(self.spec.log, "a") as log:
            log.write(f"{stamp} W {os.getpid()} guard] {message}\n")

    def _on_signal(self, number: int, frame: object) -> None:
        if self.stopping and self.state.pid:
            _kill_group(self.state.pid)
        self.stopping = True


if __name__ == "__main__":
    sys.exit(Guard(GuardSpec.load(Path(sys.argv[1]))).run())
