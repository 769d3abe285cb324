"""What the engine promises, on the real server: deadlines, cancellation, metrics, and what happens when it dies."""

import os
import re
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid_client import DeadlineExceeded, InstantIDClient, InstantIDError

from .conftest import ROOT
from .stages import inputs_of, photo_and_prompt, to_inputs

LONG = {"num_inference_steps": 100, "num_images_per_prompt": 4, "width": 256, "height": 256, "scheduler": "heun"}
"""Some tens of seconds on two cores."""


def metric(server, name, **labels):
    text = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    total = 0.0
    for line in text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not _holds(condition):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _holds(condition):
    """A metrics endpoint that does not answer right now is not there yet; a server that is gone stays so."""
    try:
        return condition()
    except urllib.error.URLError:
        return False


def test_a_deadline_stops_the_work_inside_the_ensemble(server, client, astronaut):
    cancelled = metric(server, "instantid_requests_total", outcome="CANCELLED")
    with pytest.raises(DeadlineExceeded):
        client.generate(astronaut, "a portrait", timeout=3.0, **LONG)
    wait_until(lambda: metric(server, "instantid_requests_total", outcome="CANCELLED") == cancelled + 1, 5)
    rows = metric(server, "instantid_step_rows_sum")
    time.sleep(1.0)
    assert metric(server, "instantid_step_rows_sum") == rows


def direct_inputs(client, astronaut):
    """What the denoiser is given for LONG, made by the stages before it."""
    options = {**LONG, "scheduler": LONG["scheduler"].encode()}
    return to_inputs(inputs_of(client, "denoiser", photo_and_prompt(astronaut, **options)))


def test_a_direct_caller_s_cancellation_is_seen_at_the_next_step(server, astronaut):
    with triton.InferenceServerClient(server.grpc_url) as raw:
        inputs, heard, done = direct_inputs(raw, astronaut), [], threading.Event()
        cancelled = metric(server, "instantid_requests_total", outcome="CANCELLED")
        rows = metric(server, "instantid_step_rows_sum")

        def answered(result, error):
            heard.append(error)
            done.set()

        call = raw.async_infer("denoiser", inputs, answered)
        wait_until(lambda: metric(server, "instantid_step_rows_sum") > rows)
        rows = metric(server, "instantid_step_rows_sum")
        call.cancel()
        assert done.wait(10)
        assert isinstance(heard[0], InferenceServerException)
        wait_until(lambda: metric(server, "instantid_requests_total", outcome="CANCELLED") == cancelled + 1, 5)
        rows_a_step = 2 * LONG["num_images_per_prompt"]
        assert metric(server, "instantid_step_rows_sum") - rows <= 2 * rows_a_step


def test_metrics_count_what_was_done(server, client, astronaut):
    names = ("instantid_requests_total", "instantid_step_rows_sum", "instantid_text_cache_total")
    before = [metric(server, name) for name in names]
    client.generate(astronaut, "a prompt of its own", num_inference_steps=5, seed=1)
    wait_until(lambda: metric(server, names[0]) > before[0])
    after = [metric(server, name) for name in names]
    assert np.subtract(after, before).tolist() == [1, 10, 2]
    assert metric(server, "instantid_step_seconds_count") > 0
    wait_until(lambda: metric(server, "instantid_active_requests") == 0, 5)


def test_the_configuration_in_force_is_logged(server):
    log = server.log_path.read_text()
    for name in ("intake", "face_conditioning", "denoiser"):
        assert re.search(rf"{name}_0_0: configuration 'cpu'", log), name


@pytest.fixture
def own_server(weights, tmp_path):
    def start(**changes):
        changes = {"exit_timeout": 5, **changes}
        return EmbeddedServer(project_options(weights, tmp_path / "run", ROOT / "model_repository", **changes))

    return start


def stub_of(server, model):
    for process in psutil.Process(server.pid).children(recursive=True):
        if any(f"/{model}/" in word for word in process.cmdline()):
            return process
    raise AssertionError(f"no process of {model}")


def outcomes_while(server, photo, break_it, callers=4):
    """What each of some callers of long requests hears when the server is broken in the middle, and how soon."""

    def call(i):
        with InstantIDClient(server.grpc_url, timeout=60) as client:
            try:
                client.generate(photo, "a portrait", seed=i, **LONG)
            except InstantIDError as error:
                return error, time.monotonic()
            return None, time.monotonic()

    with ThreadPoolExecutor(callers) as pool:
        calls = [pool.submit(call, i) for i in range(callers)]
        wait_until(
            lambda: metric(server, "instantid_step_rows_sum") > 0 and metric(server, "instantid_active_requests") >= 1
        )
        broken = time.monotonic()
        break_it()
        heard = [call.result() for call in calls]
    return [(error, at - broken) for error, at in heard]


@pytest.mark.parametrize("signal_name", ["kill", "suspend"])
def test_callers_of_a_dead_or_frozen_engine_hear_within_ten_seconds(own_server, astronaut, signal_name):
    with own_server() as server:
        stub = stub_of(server, "denoiser")
        heard = outcomes_while(server, astronaut, getattr(stub, signal_name))
        assert all(error is not None and seconds < 10 for error, seconds in heard), heard
        wait_until(lambda: not server.is_running(), 15)
        if stub.is_running():
            stub.kill()


def test_a_pause_of_all_processes_is_survived_and_a_dead_intake_ends_the_server(own_server, astronaut):
    with own_server() as server, InstantIDClient(server.grpc_url, timeout=30) as client:
        os.killpg(server.pid, signal.SIGSTOP)
        time.sleep(5)
        os.killpg(server.pid, signal.SIGCONT)
        time.sleep(5)
        assert client.generate(astronaut, "a portrait", num_inference_steps=2, seed=3).seeds == (3,)
        stub_of(server, "intake").kill()
        wait_until(lambda: not server.is_running(), 10)
        assert re.search("intake_0_[01] does not answer any more; stopping", server.log_path.read_text())


def test_the_supervisor_serves_again_after_the_engine_died(own_server, astronaut, capsys):
    with own_server(supervise=True) as server:
        died = []

        def kill():
            stub_of(server, "denoiser").kill()
            died.append(time.monotonic())

        heard = outcomes_while(server, astronaut, kill)
        assert all(error is not None for error, _ in heard)

        def answers():
            with InstantIDClient(server.grpc_url, timeout=10) as client:
                try:
                    return client.generate(astronaut, "a portrait", num_inference_steps=2, seed=3).seeds == (3,)
                except InstantIDError:
                    return False

        wait_until(answers, 90)
        served = time.monotonic() - died[0]
        with capsys.disabled():
            print(f"\nkill -9: all callers heard after {max(at for _, at in heard):.1f} s, served after {served:.1f} s")


def test_a_stopping_server_finishes_what_it_has_taken(own_server, astronaut):
    with own_server(exit_timeout=60) as server:
        with ThreadPoolExecutor(3) as pool:

            def call(i):
                with InstantIDClient(server.grpc_url, timeout=60) as client:
                    return client.generate(astronaut, "x", seed=i, num_inference_steps=100).seeds

            calls = [pool.submit(call, i) for i in range(3)]
            wait_until(lambda: metric(server, "instantid_active_requests") == 3)
            psutil.Process(server.pid).terminate()
            assert [call.result() for call in calls] == [(0,), (1,), (2,)]
        wait_until(lambda: not server.is_running(), 30)


def test_two_instances_share_the_load(weights, tmp_path, astronaut):
    repository = tmp_path / "models"
    shutil.copytree(ROOT / "model_repository", repository)
    config = repository / "denoiser" / "configs" / "cpu.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))
    options = project_options(weights, tmp_path / "run", repository)
    with EmbeddedServer(options) as server, InstantIDClient(server.grpc_url, timeout=60) as client:

        def done():
            names = ("denoiser_0_0", "denoiser_0_1")
            return [metric(server, "instantid_requests_total", instance=name, outcome="OK") for name in names]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: client.generate(astronaut, "x", seed=i, num_inference_steps=10), range(8)))
        wait_until(lambda: sum(done()) == 8)
        shared = done()
        assert min(shared) >= 2
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(client.generate, astronaut, "a long one", seed=1, timeout=120, **LONG)
            wait_until(lambda: metric(server, "instantid_active_requests") == 1)
            for i in range(4):
                client.generate(astronaut, "a short one", seed=i, num_inference_steps=2)
            wait_until(lambda: sum(done()) == 8 + 4)
            assert not long.done()
            assert sorted(np.subtract(done(), shared)) == [0, 4], "the idle instance takes the short ones"
            psutil.Process(server.pid).kill()
