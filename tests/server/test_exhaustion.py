"""What a server shares with others runs out: disk, shared memory, connections. The long part of test_faults.py."""

import resource
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil
import pytest

from instantid_client import InstantIDClient, ServerError

from .load import SMALL
from .outage import CLEAN, Target, attack, fill, served, served_in
from .test_engine_on_triton import wait_until

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server(weights, tmp_path_factory):
    with served(weights, tmp_path_factory.mktemp("exhausted"), supervise=True) as server:
        yield server


@pytest.fixture
def target(server):
    return Target.of(server)


def test_a_full_disk_hinders_nothing(weights, album, tmp_path, tell):
    """Neither log, nor state, nor costs can be written any more; then the server has to be started again."""
    with served_in(weights, tmp_path, shm=300, run=64) as (target, root):

        def fill_and_kill():
            disk = root / str(target.folder).lstrip("/")
            shutil.rmtree(disk / "cache")
            fill(disk)
            psutil.Process(target.pid).kill()

        tell(attack(target, album, fill_and_kill, restarts=True).row("full disk, then SIGKILL of tritonserver"))


def test_the_server_bears_full_shared_memory(weights, album, tmp_path, tell):
    """Small requests fit into what Triton holds already; those with four photos do not."""
    with served_in(weights, tmp_path, shm=300, run=64) as (target, root):

        def fill_for_a_while():
            fill(root / "dev/shm")
            with InstantIDClient(target.url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
                calls = [pool.submit(client.generate, [album.photos[0]] * 4, "a portrait", **SMALL) for _ in range(4)]
            (root / "dev/shm/filler").unlink()
            heard.extend(call.exception() for call in calls)

        heard = []
        outage = attack(target, album, fill_for_a_while, restarts=None)
        assert ServerError in {type(error) for error in heard}
        assert all(type(error).__name__ in CLEAN for error in heard), heard
        tell(outage.row(f"/dev/shm full, with 4 requests of 4 photos: {sorted(type(e).__name__ for e in heard)}"))


def test_five_thousand_idle_connections(target, album, tell):
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
    tell(attack(target, album, connect, restarts=False).row("5,000 connections"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: server.num_fds() <= before + 20, 30)


def test_slow_uploads_over_http(server, target, album, tell):
    """Each announces ten megabytes and sends a byte a second."""
    with ExitStack() as held:
        head = b"POST /v2/models/instantid/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"

        def upload():
            connections = [socket.create_connection(("127.0.0.1", server.ports.http)) for _ in range(200)]
            for connection in connections:
                held.enter_context(connection).sendall(head)
            for _ in range(10):
                for connection in connections:
                    connection.sendall(b"{")
                time.sleep(1)

        tell(attack(target, album, upload, restarts=False).row("200 slow uploads"))
