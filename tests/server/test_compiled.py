"""INSTANTID_COMPILE on the real server: it answers while it compiles, and its pictures stay what they were."""

import io
import re
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid_client import InstantIDClient
from tests.server.conftest import ROOT

pytestmark = pytest.mark.long
WAIT_SECONDS = 1200


def start(weights, place, cache):
    environment = {"INSTANTID_COMPILE": "background", "INSTANTID_CACHE": str(cache)}
    place.mkdir()
    return EmbeddedServer(project_options(weights, place, ROOT / "model_repository", environment=environment))


def picture(client, astronaut):
    made = client.generate(astronaut, "a portrait", num_inference_steps=4, seed=7, output_format="png")
    return np.asarray(Image.open(io.BytesIO(made.images[0]))).astype(int)


def workers():
    return [
        p for p in psutil.process_iter(["cmdline"]) if "instantid.serving.compile_worker" in (p.info["cmdline"] or [])
    ]


def test_steps_are_compiled_while_requests_are_answered_and_kept_for_the_next_start(weights, tmp_path, astronaut):
    with start(weights, tmp_path / "first", tmp_path / "cache") as server:
        with InstantIDClient(server.grpc_url, timeout=120) as client:
            before = picture(client, astronaut)
            assert len(workers()) == 1
            ends = time.monotonic() + WAIT_SECONDS
            while "compiled step 128x128-2 serves" not in server.log_path.read_text() and time.monotonic() < ends:
                assert np.array_equal(picture(client, astronaut), before) or "serves" in server.log_path.read_text()
            after = picture(client, astronaut)
        assert "compiled step 128x128-2 serves" in server.log_path.read_text()
    assert np.abs(after - before).max() <= 2
    assert not workers()
    with start(weights, tmp_path / "second", tmp_path / "cache") as server:
        log = server.log_path.read_text()
        assert re.search(r"compiled step 128x128-2 serves", log)
        with InstantIDClient(server.grpc_url, timeout=120) as client:
            assert np.array_equal(picture(client, astronaut), after)
