"""Many mixed requests: each is answered exactly once, and memory does not grow."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid_client import InstantIDClient, InstantIDError, Routing

from .conftest import ROOT, encoded
from .test_engine_on_triton import direct_inputs, metric, wait_until

CALLERS = 10
GROWTH = 1.02


def resident_bytes(server):
    root = psutil.Process(server.pid)
    return sum(process.memory_info().rss for process in (root, *root.children(recursive=True)))


class Soak:
    """Sends requests that are good, late, cancelled or wrong, as `random.Random(i)` says for request i."""

    def __init__(self, server, photo):
        self.server, self.photo = server, photo
        self.no_face_photo = encoded(np.zeros((256, 256, 3), np.uint8))
        self.local = threading.local()
        with triton.InferenceServerClient(server.grpc_url) as raw:
            self.direct = direct_inputs(raw, photo)

    def __call__(self, i):
        rng = random.Random(i)
        if not hasattr(self.local, "client"):
            self.local.client = InstantIDClient(self.server.grpc_url, timeout=120)
            self.local.raw = triton.InferenceServerClient(self.server.grpc_url)
        kind = rng.choices(["good", "late", "cancelled", "wrong", "no face"], [60, 15, 10, 10, 5])[0]
        return kind, getattr(self, kind.replace(" ", "_"))(rng, i)

    def good(self, rng, seed, **fields):
        side = rng.choice([64, 128])
        options = {
            "width": side,
            "height": side,
            "num_inference_steps": rng.randint(1, 8),
            "guidance_scale": rng.choice([1.0, 5.0]),
            "num_images_per_prompt": rng.choice([1, 1, 2]),
            "seed": seed,
            "routing": Routing(tenant=rng.choice(["a", "b", "default"])),
            **fields,
        }
        try:
            return self.local.client.generate(self.photo, f"prompt {seed % 40}", **options).seeds[0] == seed
        except InstantIDError as error:
            return type(error).__name__

    def late(self, rng, seed):
        return self.good(rng, seed, num_inference_steps=100, timeout=rng.uniform(0.05, 1.5))

    def wrong(self, rng, seed):
        return self.good(rng, seed, **rng.choice([{"width": 100}, {"guidance_scale": 99.0}, {"scheduler": "none"}]))

    def no_face(self, rng, seed):
        try:
            return self.local.client.generate(self.no_face_photo, "x")
        except InstantIDError as error:
            return type(error).__name__

    def cancelled(self, rng, seed):
        heard, done = [], threading.Event()

        def answered(result, error):
            heard.append(error)
            done.set()

        call = self.local.raw.async_infer("denoiser", self.direct, answered)
        time.sleep(rng.uniform(0, 0.5))
        call.cancel()
        assert done.wait(60)
        return len(heard) == 1 and heard[0] is not None


EXPECTED = {
    "good": {True, "Overloaded"},
    "late": {"DeadlineExceeded", "Overloaded"},
    "cancelled": {True},
    "wrong": {"InvalidArgument"},
    "no face": {"InvalidArgument"},
}


def run(server, photo, requests, watch=lambda done: None):
    """Sends the requests and counts what their callers heard; the engine must have answered each exactly once."""
    executed = metric(server, "nv_inference_exec_count", model="denoiser")
    answered = metric(server, "instantid_requests_total", stage="denoiser")
    heard = Counter()
    soak = Soak(server, photo)
    with ThreadPoolExecutor(CALLERS) as pool:
        for done, (kind, outcome) in enumerate(pool.map(soak, range(requests)), 1):
            heard[kind, outcome] += 1
            watch(done)
    wait_until(lambda: metric(server, "instantid_active_requests") == 0)
    executed = metric(server, "nv_inference_exec_count", model="denoiser") - executed
    assert metric(server, "instantid_requests_total", stage="denoiser") - answered == executed
    assert heard.total() == requests
    wrong = {said: count for said, count in heard.items() if said[1] not in EXPECTED[said[0]]}
    assert not wrong, heard
    return heard


def test_every_one_of_many_mixed_requests_is_answered_once(server, astronaut):
    heard = run(server, astronaut, 60)
    assert heard["good", True] > 30


@pytest.mark.long
def test_a_thousand_mixed_requests_leave_no_memory_behind(weights, tmp_path, astronaut, capsys):
    options = project_options(weights, tmp_path / "run", ROOT / "model_repository")
    with EmbeddedServer(options) as server:
        resident = {}

        def watch(done):
            if done % 50 == 0:
                resident[done] = resident_bytes(server)

        run(server, astronaut, 250)
        heard = run(server, astronaut, 1000, watch)
        with capsys.disabled():
            print({done: round(size / 2**20) for done, size in resident.items()}, dict(heard))
        assert max(resident[done] for done in resident if done > 750) <= GROWTH * resident[500]
