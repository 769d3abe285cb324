"""A long request among short ones that never pause, on the real server: its wait is bounded by its own work."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from instantid.engine.policy import PATIENCE
from instantid_client import InstantIDClient

LONG = {"width": 256, "height": 256, "num_inference_steps": 20, "scheduler": "heun", "seed": 1}
SHORT = {"width": 128, "height": 128, "num_inference_steps": 8, "seed": 1}
CALLERS = 6


@pytest.mark.long
def test_a_long_request_among_short_ones_that_never_pause_is_answered(server, astronaut, tell):
    """Least work alone never answers it: `bench/closed_loop.py`. The others' answers are its own size of proof."""
    done, answered = threading.Event(), []

    def keep_asking(client):
        while not done.is_set():
            client.generate(astronaut, "a portrait", **SHORT)
            answered.append(time.monotonic())

    with InstantIDClient(server.grpc_url, timeout=900) as client, ThreadPoolExecutor(CALLERS) as pool:
        alone = seconds_of(lambda: client.generate(astronaut, "a portrait", **LONG))
        callers = [pool.submit(keep_asking, client) for _ in range(CALLERS)]
        time.sleep(2)
        begun = time.monotonic()
        beside = seconds_of(lambda: client.generate(astronaut, "a portrait", **LONG))
        done.set()
        for caller in callers:
            caller.result()
    others = sum(begun < at < begun + beside for at in answered)
    tell(f"long request: {alone:.1f} s alone, {beside:.1f} s beside {others} short ones")
    assert others > 4 * alone, "the short ones never paused and had their half"
    assert beside <= 1.5 * (PATIENCE + 2) * alone


def seconds_of(call):
    began = time.monotonic()
    call()
    return time.monotonic() - began
