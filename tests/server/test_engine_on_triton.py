"""What the engine promises, on the real server: deadlines, cancellation, metrics, and what happens when it dies."""

import re
import shutil
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
from instantid_client import DeadlineExceeded, InstantIDClient

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

        def steps():
            """Of the requests that each instance has answered; a step of two rows at 128x128 is 1/32 of a cost unit."""
            names = ("denoiser_0_0", "denoiser_0_1")
            return [round(32 * metric(server, "instantid_cost_units_total", engine=name)) for name in names]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: client.generate(astronaut, "x", seed=i, num_inference_steps=10), range(8)))
        wait_until(lambda: sum(steps()) == 80)
        shared = steps()
        assert min(shared) >= 20
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(client.generate, astronaut, "a long one", seed=1, timeout=120, **LONG)
            wait_until(lambda: metric(server, "instantid_active_requests") == 1)
            for i in range(4):
                client.generate(astronaut, "a short one", seed=i, num_inference_steps=2)
            wait_until(lambda: sum(steps()) == 80 + 8)
            assert not long.done()
            assert sorted(np.subtract(steps(), shared)) == [0, 8], "the idle instance takes the short ones"
            psutil.Process(server.pid).kill()
