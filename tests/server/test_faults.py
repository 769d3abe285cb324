"""The running server is broken in many ways under load: what callers get, how soon it serves again, what is left.

`pytest -m "" tests/server/test_faults.py` runs all of it and prints the table of docs/reliability.md. An engine that
runs out of memory, a device that fails and a step that is stuck are in test_hanging.py.
"""

import contextlib
import importlib.util
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest
from skimage import data

from instantid_client import InstantIDClient, InstantIDError, Unreachable

from .conftest import encoded
from .load import CALLERS, SMALL, Load
from .outage import Shared, Target, attack, rows, served, served_in
from .test_engine_on_triton import LONG, metric, stub_of, wait_until

MODELS = ("intake", "face_analysis", "face_conditioning", "denoiser")
long = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    head = (
        "| fault | good answers | failed calls | slowest call, s | next good answer, s | of it the server's start, s |"
    )
    print("\n".join(["", head, "|" + "---|" * 6, *rows]), file=sys.__stderr__)


@pytest.fixture(scope="module")
def photos(astronaut):
    return astronaut, encoded(data.astronaut()[:, ::-1])


@pytest.fixture(scope="module")
def shared(weights, tmp_path_factory):
    made = Shared(lambda: served(weights, tmp_path_factory.mktemp("faults"), supervise=True))
    yield made
    made.close()


@pytest.fixture
def target(shared):
    return shared.get()


def process(target, name):
    return psutil.Process(target.pid) if name == "tritonserver" else stub_of(target, name)


@pytest.mark.parametrize(
    "name", ["intake", *(pytest.param(name, marks=long) for name in (*MODELS[1:], "tritonserver"))]
)
def test_a_killed_process_is_noticed_and_the_server_serves_again(target, photos, name):
    attack(target, photos, process(target, name).kill, restarts=True).tell(f"SIGKILL of {name}")


FROZEN = [(name, seconds) for name in (*MODELS, "tritonserver") for seconds in (1, 2, 5, 20)]


@pytest.mark.parametrize(
    ("name", "seconds"), [pytest.param(*one, marks=() if one == ("denoiser", 1) else long) for one in FROZEN]
)
def test_a_frozen_process_is_waited_for_or_ends_its_server(target, photos, name, seconds):
    """Triton itself may end when a model stands still for more than a second in the middle of its execute()."""
    victim = process(target, name)

    def freeze():
        victim.suspend()
        time.sleep(seconds)
        if victim.is_running():
            victim.resume()

    ends = None if name != "tritonserver" and seconds == 2 else name != "tritonserver" and seconds > 2
    attack(target, photos, freeze, ends).tell(f"SIGSTOP of {name} for {seconds} s")


@pytest.mark.parametrize("seconds", [5, pytest.param(20, marks=long)])
def test_a_pause_of_all_processes_is_survived(target, photos, seconds):
    def pause():
        os.killpg(target.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.killpg(target.pid, signal.SIGCONT)

    attack(target, photos, pause, restarts=False).tell(f"SIGSTOP of all for {seconds} s")


@long
def test_steps_of_the_wall_clock_are_survived(weights, photos, tmp_path):
    library = Path(importlib.util.find_spec("libfaketime").origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    (tmp_path / "clock").write_text("+0")
    changed = {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(tmp_path / "clock"),
        "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip

    def step():
        for offset in ("+3", "+0", "+36000"):
            (tmp_path / "clock").write_text(offset)
            time.sleep(5)

    with served(weights, tmp_path, supervise=True, environment=changed) as server:
        target = Target(server.grpc_url, server.options.run_dir)
        attack(target, photos, step, restarts=False).tell("clock 3 s forward, 3 s back, 10 h forward")
    stamps = [datetime.fromisoformat(found) for found in re.findall(r"^(\S+Z) I", server.log_path.read_text(), re.M)]
    assert stamps[-1] - stamps[0] > timedelta(hours=9), "the server's own clock was changed"


def fill(folder):
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(1 << 20)):
            pass


@long
def test_a_full_disk_hinders_nothing(weights, photos, tmp_path):
    """Neither log, nor state, nor costs can be written any more; then the server has to be started again."""
    with served_in(weights, tmp_path, shm=300, run=64) as (target, root):

        def fill_and_kill():
            disk = root / str(target.folder).lstrip("/")
            shutil.rmtree(disk / "cache")
            fill(disk)
            psutil.Process(target.pid).kill()

        attack(target, photos, fill_and_kill, restarts=True).tell("disk of log, state and caches full, then SIGKILL")


@long
def test_the_server_comes_back_after_shared_memory_was_full(weights, photos, tmp_path):
    with served_in(weights, tmp_path, shm=300, run=64) as (target, root):

        def fill_for_a_while():
            fill(root / "dev/shm")
            time.sleep(10)
            (root / "dev/shm/filler").unlink()

        attack(target, photos, fill_for_a_while, restarts=None).tell("/dev/shm full for 10 s")


def test_sigterm_loses_nothing_that_the_denoiser_has(weights, photos, tmp_path):
    """A request in an earlier stage is refused when it comes to the next: Triton stops all models at once."""
    with served(weights, tmp_path) as server:
        with Load(server.grpc_url, photos) as load:
            wait_until(lambda: metric(server, "instantid_active_requests") >= 2)
            began = time.monotonic()
            psutil.Process(server.pid).terminate()
            wait_until(lambda: not server.is_running(), 60)
        calls = [call for call in load.calls if call.ended >= began > call.began]
        assert len(calls) == CALLERS
        lost = [call for call in calls if call.outcome != "OK"]
        assert {call.outcome for call in lost} <= {"Overloaded"}
        assert len(lost) <= CALLERS - 2
        told = f"{len(lost)} Overloaded" if lost else "none"
        figures = f"{CALLERS - len(lost)} | {told} | {load.longest(began):.1f} | | |"
        rows.append(f"| SIGTERM with {CALLERS} requests in progress | {figures}")


@long
def test_a_second_sigterm_ends_it_at_once(weights, photos, tmp_path):
    with served_in(weights, tmp_path, shm=300, run=64) as (target, _), ThreadPoolExecutor(1) as pool:
        client = InstantIDClient(target.url, timeout=120)
        call = pool.submit(client.generate, photos[0], "a portrait", **LONG)
        time.sleep(3)
        server = psutil.Process(target.pid)
        (serve,) = [one for one in server.parents() if "serve" in one.cmdline()]
        serve.terminate()
        time.sleep(2)
        assert server.is_running()
        began = time.monotonic()
        serve.terminate()
        wait_until(lambda: not server.is_running() and not target.pid, 5)
        assert isinstance(call.exception(), Unreachable)
        rows.append(
            f"| a second SIGTERM, 2 s after the first | 0 | 1 Unreachable | {time.monotonic() - began:.1f} | | |"
        )


@long
def test_five_thousand_idle_connections(target, photos):
    server = psutil.Process(target.pid)
    before = server.num_fds()

    def connect():
        host, port = target.url.split(":")
        with ExitStack() as held:
            for _ in range(5000):
                held.enter_context(socket.create_connection((host, int(port)), timeout=30))
            time.sleep(5)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attack(target, photos, connect, restarts=False).tell("5,000 connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: server.num_fds() <= before + 20, 30)


@long
def test_slow_uploads_over_http(weights, photos, tmp_path):
    """Each announces ten megabytes and sends a byte a second."""
    with served(weights, tmp_path, supervise=True) as server, ExitStack() as held:
        target = Target(server.grpc_url, server.options.run_dir)
        head = b"POST /v2/models/instantid/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"

        def upload():
            connections = [socket.create_connection(("127.0.0.1", server.ports.http)) for _ in range(200)]
            for connection in connections:
                held.enter_context(connection).sendall(head)
            for _ in range(10):
                for connection in connections:
                    connection.sendall(b"{")
                time.sleep(1)

        attack(target, photos, upload, restarts=False).tell("200 slow uploads")


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=long)])
def test_callers_that_leave_in_the_middle_leave_nothing_behind(target, photos, count):
    rng = random.Random(count)

    def call_and_leave(seconds):
        with InstantIDClient(target.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
            call = pool.submit(client.generate, photos[0], "another portrait", **{**SMALL, "num_inference_steps": 20})
            time.sleep(seconds)
            client.close()
            return call.exception()

    def leave():
        with ThreadPoolExecutor(20) as pool:
            heard = list(pool.map(call_and_leave, [rng.uniform(0, 2) for _ in range(count)]))
        assert all(error is None or isinstance(error, InstantIDError) for error in heard), heard

    attack(target, photos, leave, restarts=False).tell(f"{count} callers that leave")
