"""The running server is broken in many ways under load: what callers get, how soon it serves again, what is left.

`pytest -m "" tests/server/test_faults.py tests/server/test_exhaustion.py` runs all of it and prints the table of
docs/reliability.md. An engine that runs out of memory, a device that fails and a step that is stuck are in
test_hanging.py.
"""

import contextlib
import importlib.util
import os
import random
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

from instantid_client import InstantIDClient, InstantIDError, Unreachable

from .load import SMALL, Load
from .outage import Shared, Target, attack, served, served_in
from .test_engine_on_triton import LONG, metric, stub_of, wait_until

MODELS = ("intake", "face_analysis", "face_conditioning", "denoiser")
long = pytest.mark.long


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


FROZEN = [(name, seconds) for name in (*MODELS, "tritonserver") for seconds in (1, 2, 5, 20)]


@pytest.mark.parametrize(
    ("name", "seconds"), [pytest.param(*one, marks=() if one == ("denoiser", 1) else long) for one in FROZEN]
)
def test_a_frozen_process_is_waited_for_or_ends_its_server(target, album, name, seconds, tell):
    """Triton itself may end when a model stands still for more than a second in the middle of its execute()."""
    victim = process(target, name)

    def freeze():
        victim.suspend()
        time.sleep(seconds)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.resume()

    ends = None if name != "tritonserver" and seconds == 2 else name != "tritonserver" and seconds > 2
    tell(attack(target, album, freeze, ends).row(f"SIGSTOP of {name} for {seconds} s"))


@pytest.mark.parametrize("seconds", [5, pytest.param(20, marks=long)])
def test_a_pause_of_all_processes_is_survived(target, album, seconds, tell):
    """The models go on a moment before Triton, whose own check may otherwise take one that has a request for dead."""
    models = [process for process in psutil.process_iter() if process.name().startswith("triton_python")]

    def pause():
        os.killpg(target.pid, signal.SIGSTOP)
        time.sleep(seconds)
        for model in models:
            if os.getpgid(model.pid) == target.pid:
                model.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        os.killpg(target.pid, signal.SIGCONT)

    tell(attack(target, album, pause, restarts=False).row(f"SIGSTOP of all for {seconds} s"))


@long
def test_steps_of_the_wall_clock_are_survived(weights, album, tmp_path, tell):
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
        target = Target.of(server)
        tell(attack(target, album, step, restarts=False).row("clock 3 s forward, 3 s back, 10 h forward"))
    stamps = [datetime.fromisoformat(found) for found in re.findall(r"^(\S+Z) I", server.log_path.read_text(), re.M)]
    assert stamps[-1] - stamps[0] > timedelta(hours=9), "the server's own clock was changed"


@long
def test_a_second_sigterm_ends_it_at_once(weights, album, tmp_path, tell):
    with ExitStack() as held:
        target, _ = held.enter_context(served_in(weights, tmp_path, shm=300, run=64))
        client = held.enter_context(InstantIDClient(target.url, timeout=120))
        pool = held.enter_context(ThreadPoolExecutor(1))
        call = pool.submit(client.generate, album.photos[0], "a portrait", **LONG)
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
        tell(f"| a second SIGTERM, 2 s after the first | 0 | 1 Unreachable | {time.monotonic() - began:.1f} | | |")


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=long)])
def test_callers_that_leave_in_the_middle_leave_nothing_behind(target, album, count, tell):
    rng = random.Random(count)

    def call_and_leave(seconds):
        with InstantIDClient(target.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
            call = pool.submit(
                client.generate, album.photos[0], "another portrait", **{**SMALL, "num_inference_steps": 20}
            )
            time.sleep(seconds)
            client.close()
            return call.exception()

    def leave():
        with ThreadPoolExecutor(20) as pool:
            heard = list(pool.map(call_and_leave, [rng.uniform(0, 2) for _ in range(count)]))
        assert [error for error in heard if not isinstance(error, InstantIDError | None)] == []

    tell(attack(target, album, leave, restarts=False, noticed=0.1).row(f"{count} callers that leave"))


@pytest.mark.parametrize(
    "name", ["intake", *(pytest.param(name, marks=long) for name in (*MODELS[1:], "tritonserver"))]
)
def test_a_killed_process_is_noticed_and_the_server_serves_again(shared, album, name, tell):
    target = shared.get(starts=2)
    tell(attack(target, album, process(target, name).kill, restarts=True).row(f"SIGKILL of {name}"))


def test_sigterm_loses_nothing_that_the_denoiser_has(shared, album, tell):
    """A request in an earlier stage is refused when it comes to the next: Triton stops all models at once."""
    target = shared.get(starts=3)
    with Load(target.url, album) as load:
        wait_until(lambda: metric(target, "instantid_active_requests") >= 2)
        began, pid = time.monotonic(), target.pid
        psutil.Process(pid).terminate()
        wait_until(lambda: target.pid != pid, 60)
    calls = [call for call in load.calls if call.ended >= began > call.began]
    lost = [call for call in calls if call.outcome != "OK"]
    assert {call.outcome for call in lost} <= {"Overloaded"}
    assert len(calls) - len(lost) >= 2
    told = f"{len(lost)} Overloaded" if lost else "none"
    figures = f"{len(calls) - len(lost)} | {told} | {load.longest(began):.1f} | | |"
    tell(f"| SIGTERM with {len(calls)} requests in progress | {figures}")
