"""Nobody waits for ever: the ways to hang a caller (Triton notices none of them), each tried for real."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid.serving.board import server_folder
from instantid_client import DeadlineExceeded, InstantIDClient, InstantIDError

from .conftest import ROOT
from .test_engine_on_triton import wait_until

FAULTS = Path(__file__).parent / "faults"
SHORT = {"num_inference_steps": 20, "seed": 1}


def start(weights, folder):
    repository = folder / "models"
    shutil.copytree(ROOT / "model_repository", repository)
    for model in ("denoiser", "face_conditioning"):
        shutil.copy(FAULTS / f"{model}.py", repository / model / "1" / "model.py")
    return EmbeddedServer(project_options(weights, folder / "run", repository, exit_timeout=5))


@pytest.fixture(scope="module")
def faulty(weights, tmp_path_factory):
    with start(weights, tmp_path_factory.mktemp("faulty")) as server:
        yield server


def hear(url, photo, prompt, timeout=30):
    """The error that the caller of this prompt hears, if any, and after how many seconds."""
    began = time.monotonic()
    with InstantIDClient(url, timeout=timeout) as client:
        try:
            client.generate(photo, prompt, **SHORT)
        except InstantIDError as error:
            return error, time.monotonic() - began
    return None, time.monotonic() - began


@pytest.mark.parametrize(
    "prompt",
    [
        "no response in the list",
        "cannot be read",
        "execution raises",
        "lost on the way to the engine",
        "response that cannot be sent",
        "finishing thread ends",
        "memory",
    ],
)
def test_a_caller_whose_request_is_lost_hears_so_and_its_neighbour_is_served(faulty, astronaut, prompt):
    with ThreadPoolExecutor(2) as pool:
        neighbour = pool.submit(hear, faulty.grpc_url, astronaut, "a portrait")
        error, _ = hear(faulty.grpc_url, astronaut, prompt)
        assert neighbour.result()[0] is None
    assert error is not None
    assert not isinstance(error, DeadlineExceeded)
    assert "/" not in str(error), "no path of the server's in an error"


@pytest.mark.parametrize(
    "prompt",
    [
        "the device fails",
        pytest.param("the engine's thread ends", marks=pytest.mark.long),
        pytest.param("the step is stuck", marks=pytest.mark.long),
    ],
)
def test_an_engine_that_cannot_go_on_ends_its_server_within_ten_seconds(weights, tmp_path, astronaut, prompt):
    with start(weights, tmp_path) as server:
        assert hear(server.grpc_url, astronaut, "a portrait")[0] is None
        left = server_folder(server.pid)
        assert left.is_dir()
        with ThreadPoolExecutor(2) as pool:
            neighbour = pool.submit(hear, server.grpc_url, astronaut, "the neighbour")
            error, seconds = hear(server.grpc_url, astronaut, prompt)
            assert error is not None
            neighbour.result()
        wait_until(lambda: not server.is_running(), 12 - min(seconds, 10))
        wait_until(lambda: not left.exists())
