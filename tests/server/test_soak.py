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
from instantid_client import InstantIDClient, InstantIDError

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
        self.no_face = encoded(np.zeros((256, 256, 3), np.uint8))
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
            "tenant": rng.choice(["a", "b", None]),
            "seed": seed,
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

    def no_face(self, rng, seed): ...

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
