"""A server that is broken while callers use it: how long it is away, and what it leaves behind."""

import contextlib
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid.serving.board import server_folder

from .conftest import ROOT
from .load import SETTLED, Load, is_ready
from .test_embedded_lifecycle import processes, shared_memory
from .test_embedded_serve import three_free_ports
from .test_engine_on_triton import wait_until

BACK_SECONDS = 10
"""From a fault to the next good answer, without the server's own start and what an answer takes otherwise."""
NOTICED_SECONDS = 8
"""After a fault: by then a server that cannot go on has been ended."""
CLEAN = {"OK", "Overloaded", "Unreachable", "ServerError"}
"""No caller waits until its own deadline, and none gets another's answer."""
PATH = re.compile(r"(?<![\w:/])/\w")


@dataclass(frozen=True)
class Target:
    """A supervised server, found by its folder; `pid` is 0 between two of its runs."""

    url: str
    metrics_url: str
    folder: Path

    @classmethod
    def of(cls, server):
        return cls(server.grpc_url, server.metrics_url, server.options.run_dir)

    @property
    def pid(self):
        where = f"--model-repository={self.folder.resolve()}"
        for process in psutil.process_iter(["pid", "name", "cmdline"]):
            if process.info["name"] == "tritonserver" and any(
                w.startswith(where) for w in process.info["cmdline"] or ()
            ):
                return process.info["pid"]
        return 0


@dataclass
class Outage:
    """`starts` and `own_start`: how often the server was started again, and the seconds until it was ready."""

    load: Load
    began: float
    starts: int = 0
    own_start: float = 0.0

    @property
    def back(self):
        return self.load.next_good(self.began)

    def row(self, fault):
        """A line of the table in docs/reliability.md."""
        outcomes = self.load.outcomes(self.began)
        failed = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()) if name != "OK") or "none"
        numbers = f"{self.load.longest(self.began):.1f} | {self.back:.1f} | {self.own_start:.1f}"
        return f"| {fault} | {outcomes['OK']} | {failed} | {numbers} |"


def attack(target, album, fault, restarts, noticed=NOTICED_SECONDS):
    """Break a server under load, follow it until it serves again, and check what its callers got.

    `restarts` is whether it must be started again; None: it may. The watch has `noticed` seconds to find the fault.
    """
    first = target.pid
    board, stubs = server_folder(first), psutil.Process(first).children()
    with Load(target.url, album) as load:
        outage = Outage(load, time.monotonic())
        with ThreadPoolExecutor(1) as pool:
            broken = pool.submit(fault)
            follow(target, first, outage, broken, noticed)
            broken.result()
        load.wait_for_good(SETTLED, time.monotonic())
    outcomes = load.outcomes(outage.began)
    assert set(outcomes) <= CLEAN, {(call.outcome, call.text) for call in load.calls if call.outcome not in CLEAN}
    assert not [call for call in load.calls if PATH.search(call.text)], "a path in an error"
    assert restarts is None or (outage.starts > 0) == restarts, outcomes
    if restarts:
        assert load.longest(outage.began) < BACK_SECONDS + load.usual(outage.began), outage.row("waited too long")
        assert outage.back - outage.own_start - load.usual(outage.began) < BACK_SECONDS, outage.row("too late")
    if outage.starts:
        wait_until(lambda: not board.exists() and not [stub for stub in stubs if stub.is_running()], 5)
    return outage


def follow(target, pid, outage, broken, noticed):
    calm = time.monotonic() + noticed
    while time.monotonic() < calm:
        if not broken.done():
            calm = time.monotonic() + noticed
        if (now := target.pid) not in (0, pid):
            began, pid = time.monotonic(), now
            wait_until(lambda: is_ready(target.url), 300)
            outage.starts += 1
            outage.own_start += time.monotonic() - began
            calm = time.monotonic() + 1
        elif not now:
            calm = time.monotonic() + NOTICED_SECONDS
        time.sleep(0.05)


@contextmanager
def served(weights, folder, **changes):
    """A server of its own; afterwards nothing of it may be left."""
    options = project_options(weights, folder / "run", ROOT / "model_repository", **{"exit_timeout": 60, **changes})
    with EmbeddedServer(options) as server:
        yield server
        board = server_folder(server.pid) if server.pid else None
    assert board is None or not board.exists()
    assert not processes(options)
    assert not shared_memory(options)
    assert "does not answer any more" not in server.log_path.read_text().rpartition("guard]")[2], "an orderly stop"


@contextmanager
def served_in(weights, folder, environment=None, **sizes):
    """`make serve` with small disks of its own, in mebibytes: `shm` for /dev/shm, `run` for its log and its caches."""
    port, run = three_free_ports(), folder / "run"
    run.mkdir()
    mounts = [
        f"mount -t tmpfs -o size={sizes[name]}m tmpfs {where}" for name, where in (("shm", "/dev/shm"), ("run", run))
    ]
    alone = ["unshare", "--mount", "sh", "-c", " && ".join(["mount --make-rprivate /", *mounts, 'exec "$@"']), "sh"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    command = [sys.executable, "-m", "build_tools", "serve", "--weights", weights, "--run-dir", run]
    environment = {**os.environ, "INSTANTID_CACHE": str(run / "cache")}
    with subprocess.Popen([*alone, *command, "--first-port", str(port)], cwd=ROOT, env=environment) as serve:
        try:
            wait_until(lambda: serve.poll() is not None or is_ready(f"127.0.0.1:{port + 1}"), 300)
            yield (
                Target(f"127.0.0.1:{port + 1}", f"http://127.0.0.1:{port + 2}/metrics", run),
                Path(f"/proc/{serve.pid}/root"),
            )
        finally:
            serve.terminate()
            serve.wait(60)


def fill(folder):
    """Until its disk has no room."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(1 << 20)):
            pass


class Shared:
    """One supervised server for many faults, replaced once it has been started again.

    A supervisor waits the longer before a start the more short runs it has seen in a row.
    """

    def __init__(self, make):
        self._make, self._stack, self._server = make, ExitStack(), None

    def get(self, starts=1):
        if self._server is None or self._server.state.starts > starts:
            self.close()
            self._server = self._stack.enter_context(self._make())
        return Target.of(self._server)

    def close(self):
        self._stack.close()
        self._server = None
