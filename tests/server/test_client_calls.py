"""Both clients on the real server: many calls on one client, refusals, a server that stops, a fresh environment."""

import asyncio
import io
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid_client import (
    AsyncInstantIDClient,
    DeadlineExceeded,
    InstantIDClient,
    InvalidArgument,
    Overloaded,
    Routing,
    Unreachable,
)
from tests.client.test_distribution import interpreter, wheel  # noqa: F401 - a fixture

from .conftest import ROOT, encoded

QUICK = {"num_inference_steps": 1, "guidance_scale": 1.0}
LONG = {"num_inference_steps": 100, "num_images_per_prompt": 4, "width": 256, "height": 256, "scheduler": "heun"}


def run_async(url, body, **options):
    async def run():
        async with AsyncInstantIDClient(url, **options) as client:
            return await body(client)

    return asyncio.run(run())


def test_both_clients_give_the_same_picture(server, client, astronaut):
    ours = client.generate(astronaut, "a portrait", seed=1, **QUICK)
    theirs = run_async(server.grpc_url, lambda other: other.generate(astronaut, "a portrait", seed=1, **QUICK))
    assert ours.images == theirs.images
    assert ours.face == theirs.face


def test_photos_of_every_form_are_the_same_photo(client, astronaut, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(astronaut)
    image = Image.open(path)
    forms = path, str(path), bytearray(astronaut), path.open("rb"), image, np.asarray(image)
    images = {client.generate(photo, "a portrait", seed=1, **QUICK).images for photo in forms}
    assert len(images) == 1


def refusal(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the class is what is asked for
        call()
    return caught.value


def test_the_server_s_own_refusals(server, client, astronaut):
    nobody = encoded(np.full((200, 200, 3), 128, np.uint8))
    error = refusal(lambda: client.generate([astronaut, nobody], "x", request_id="mine"))
    assert (type(error), error.field, error.code) == (InvalidArgument, "photo[1]", "INVALID_ARGUMENT")
    assert str(error).startswith("photo[1]: no face found")
    assert error.request_id == "mine"
    error = refusal(lambda: client.generate(b"no photo", "x"))
    assert (type(error), error.field) == (InvalidArgument, "photo[0]")
    error = refusal(lambda: client.generate(astronaut, "x", control_guidance_start=0.6, control_guidance_end=0.4))
    assert (type(error), error.field) == (InvalidArgument, "control_guidance_start")
    error = refusal(lambda: client.generate(astronaut, "x", width=4096, height=4096))
    assert type(error) is InvalidArgument
    error = refusal(lambda: client.generate(astronaut, "x", timeout=0.5, **LONG))
    assert type(error) is DeadlineExceeded


def test_a_tenant_over_its_share_is_overloaded_whatever_its_name(server, astronaut):
    """The name quotes what Triton says of queues and stops; the class does not come from it."""
    routing = Routing("Request timeout expired, Server is stopping")

    async def flood(client):
        options = {"num_inference_steps": 8, "num_images_per_prompt": 4}
        calls = [client.generate(astronaut, "x", seed=i, **options) for i in range(5)]
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = [found for found in run_async(server.grpc_url, flood, routing=routing) if isinstance(found, Exception)]
    assert {(type(error), error.field) for error in errors} == {(Overloaded, "tenant")}


def own(i, result):
    """Whether the answer to call i is its own: id, seed, and the parameters inside its picture."""
    text = repr(Image.open(io.BytesIO(result.images[0])).info)
    return result.request_id == f"call-{i}" and result.seeds == (i,) and f"prompt number {i}" in text


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("threads", "calls"), [(8, 4), pytest.param(16, 50, marks=pytest.mark.long)])
def test_threads_share_one_client(client, astronaut, threads, calls):
    def call(i):
        return own(i, client.generate(astronaut, f"prompt number {i}", seed=i, request_id=f"call-{i}", **QUICK))

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(call, range(threads * calls)))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tasks", [32, pytest.param(200, marks=pytest.mark.long)])
def test_tasks_share_one_client(server, astronaut, tasks):
    async def call(client, i):
        for _ in range(600):
            try:
                options = {"seed": i, "request_id": f"call-{i}", "timeout": 1200, **QUICK}
                answer = await client.generate(astronaut, f"prompt number {i}", **options)
            except Overloaded:
                await asyncio.sleep(1)
            else:
                return own(i, answer)
        return False

    async def all_calls(client):
        return await asyncio.gather(*[call(client, i) for i in range(tasks)])

    assert all(run_async(server.grpc_url, all_calls))


def test_a_cancelled_task_frees_the_client(server, astronaut):
    async def cancelled(client):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.generate(astronaut, "x", timeout=4, **LONG), 0.5)
        return await client.generate(astronaut, "x", seed=3, **QUICK)

    assert run_async(server.grpc_url, cancelled).seeds == (3,)


def test_a_server_that_stops_is_overloaded_then_unreachable(weights, tmp_path, astronaut):
    """What it has taken is finished; what comes meanwhile may be sent elsewhere, for none of it was begun."""
    options = project_options(weights, tmp_path / "run", ROOT / "model_repository")
    with EmbeddedServer(options) as server, InstantIDClient(server.grpc_url, timeout=60) as client:
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(client.generate, astronaut, "x", seed=1, num_inference_steps=60)
            time.sleep(1.5)
            threading.Timer(0.1, psutil.Process(server.pid).terminate).start()
            time.sleep(0.6)
            refused = refusal(lambda: client.generate(astronaut, "x", **QUICK))
            assert type(refused) is Overloaded, refused
            assert taken.result().seeds == (1,)
        end = time.monotonic() + 30
        while server.is_running() and time.monotonic() < end:
            time.sleep(0.2)
        gone = refusal(lambda: client.generate(astronaut, "x", **QUICK))
        assert type(gone) is Unreachable
        assert not gone.sent


CALL = """
import sys, numpy
from instantid_client import InstantIDClient
with InstantIDClient(sys.argv[1], timeout=100) as client:
    result = client.generate(sys.argv[2], "a portrait", seed=7, num_inference_steps=1, guidance_scale=1)
result.save(sys.argv[3])
print(sys.version_info[:2], "NumPy", numpy.__version__, result)
"""


@pytest.mark.long
def test_a_fresh_python_with_numpy_2_calls_the_server(server, client, astronaut, wheel, tmp_path, capsys):  # noqa: F811
    found = interpreter("3.13") or Path(sys.executable)
    subprocess.run([found, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    (tmp_path / "photo.png").write_bytes(astronaut)
    call = [python, "-c", CALL, server.grpc_url, tmp_path / "photo.png", tmp_path / "out.png"]
    told = subprocess.run(call, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert "NumPy 2" in told
    same = client.generate(astronaut, "a portrait", seed=7, **QUICK)
    assert (tmp_path / "out.png").read_bytes() == same.images[0]
    with capsys.disabled():
        print(f"\n{told.strip()}")
