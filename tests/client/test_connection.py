"""Connections: TLS, several servers, time limits, many threads and tasks, and the end of a client."""

import asyncio
import os
import random
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from instantid_client import (
    TLS,
    AsyncInstantIDClient,
    ClientClosed,
    DeadlineExceeded,
    FakeClient,
    InstantIDClient,
    InvalidArgument,
    Unreachable,
)
from instantid_client._addresses import Addresses
from instantid_client.transport import Channel
from tests.client.conftest import Recorder, serve


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a key and certificate for a server and for a client, in PEM form."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "rsa:2048", "-noenc", "-days", "2"]
    openssl("req", "-x509", *key, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost"]
        openssl("req", "-x509", *key, "-subj", f"/CN={name}", *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    return folder


@contextmanager
def secure(recorder, folder, mutual):
    pair = [((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())]
    authority = (folder / "ca.pem").read_bytes() if mutual else None
    server, port = serve(recorder, grpc.ssl_server_credentials(pair, authority, mutual))
    yield f"localhost:{port}"
    server.stop(None)


def test_tls_trusts_the_authority_that_is_named(call, recorder, certificates):
    with secure(recorder, certificates, mutual=False) as url:
        call.generate(url, client={"tls": TLS(certificates / "ca.pem")})
        assert recorder.requests
        with pytest.raises(Unreachable) as caught:
            call.generate(url, client={"tls": TLS()})
        assert not caught.value.sent
        with pytest.raises(Unreachable):
            call.generate(url)


def test_mutual_tls_shows_the_client_s_certificate(call, recorder, certificates):
    own = TLS(str(certificates / "ca.pem"), certificates / "client.key", certificates / "client.pem")
    with secure(recorder, certificates, mutual=True) as url:
        call.generate(url, client={"tls": own})
        assert recorder.requests
        with pytest.raises(Unreachable):
            call.generate(url, client={"tls": TLS(certificates / "ca.pem")})


def test_a_name_other_than_the_certificate_s_is_an_option_of_the_channel(call, recorder, certificates):
    with secure(recorder, certificates, mutual=False) as url:
        address = url.replace("localhost", "127.0.0.1")
        name = {"grpc.ssl_target_name_override": "localhost"}
        call.generate(address, client={"tls": TLS(certificates / "ca.pem"), "channel_options": name})
        with pytest.raises(Unreachable):
            call.generate(address, client={"tls": TLS(certificates / "ca.pem")})


def test_a_missing_certificate_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        InstantIDClient(tls=TLS(tmp_path / "missing.pem"))


def test_the_time_to_connect_is_apart_from_the_call_s(call):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.perf_counter()
        with pytest.raises(Unreachable) as caught:
            call.generate(f"127.0.0.1:{silent.getsockname()[1]}", timeout=30, client={"connect_timeout": 0.5})
        assert 0.3 < time.perf_counter() - start < 4
        assert not caught.value.sent


def test_a_slow_answer_is_no_slow_connection(call, url, recorder):
    recorder.delay = 1.0
    call.generate(url, client={"connect_timeout": 0.3})


def test_options_reach_the_channel():
    arguments = dict(Channel(keepalive=300, options={"grpc.max_receive_message_length": 5}).arguments()["channel_args"])
    assert arguments["grpc.keepalive_time_ms"] == 300_000
    assert arguments["grpc.max_receive_message_length"] == 5
    assert "grpc.keepalive_time_ms" not in dict(Channel().arguments()["channel_args"])


def test_options_of_the_channel_act(call, url):
    with pytest.raises(Exception, match="larger than max"):
        call.generate(url, client={"channel_options": {"grpc.max_receive_message_length": 5}})


@pytest.fixture
def servers():
    recorders = [Recorder(), Recorder()]
    running = [serve(recorder) for recorder in recorders]
    yield [f"127.0.0.1:{port}" for _, port in running], recorders, [server for server, _ in running]
    for server, _ in running:
        server.stop(None)


def test_addresses_take_turns(servers):
    urls, recorders, _ = servers
    with InstantIDClient(urls) as client:
        for _ in range(6):
            client.generate(b"photo", "x")
        assert [len(recorder.requests) for recorder in recorders] == [3, 3]
        assert [server.address for server in client.health().servers] == urls


def test_a_dead_server_is_passed_over(call, servers):
    urls, recorders, _ = servers
    for _ in range(3):
        call.generate(["127.0.0.1:9", urls[0]])
    assert len(recorders[0].requests) == 3
    with pytest.raises(Unreachable):
        call.generate(["127.0.0.1:9", "127.0.0.1:10"])


def test_health_tells_of_each_server(call, servers):
    urls, _, _ = servers
    state = call(["127.0.0.1:9", urls[0]], "health")
    assert state.live
    assert state.model_ready
    assert state.triton_version == "2.51.0"
    assert [server.live for server in state.servers] == [False, True]
    assert "127.0.0.1:9" in state.servers[0].error


def test_a_server_that_dies_in_the_middle_is_not_asked_twice(call, servers):
    """The work may have begun: the caller decides."""
    urls, recorders, running = servers
    recorders[0].delay = 3.0
    threading.Timer(0.5, lambda: running[0].stop(0)).start()
    with pytest.raises(Unreachable) as caught:
        call.generate(urls)
    assert caught.value.sent
    assert not recorders[1].requests


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_server_that_failed_rests_and_comes_back():
    clock = Clock()
    addresses = Addresses(["a", "b"], clock)
    addresses.failed("a")
    assert [addresses.pick() for _ in range(3)] == ["b", "b", "b"]
    clock.now = 1.0
    assert {addresses.pick(), addresses.pick()} == {"a", "b"}
    addresses.failed("a")
    clock.now = 2.5
    assert addresses.pick() == addresses.pick() == "b"
    addresses.failed("b")
    assert addresses.pick() == "a"
    addresses.worked("a")
    assert addresses.pick() == "a"
    assert addresses.pick(tried={"a"}) == "b"
    assert addresses.pick(tried={"a", "b"}) is None


def test_a_server_rests_30_seconds_at_most():
    clock = Clock()
    addresses = Addresses(["a", "b"], clock)
    for _ in range(20):
        addresses.failed("a")
    clock.now = 30.0
    assert {addresses.pick(), addresses.pick()} == {"a", "b"}


@pytest.mark.parametrize("url", ["", [], [""], 5, [b"localhost:8001"]])
def test_addresses_are_texts(url):
    with pytest.raises(InvalidArgument, match="url: ") if url != 5 else pytest.raises(TypeError):
        InstantIDClient(url)


def check(client, recorder, call_number):
    """One call whose answer has to be its own: id, seed and number of pictures."""
    number = call_number % 4 + 1
    result = client.generate(
        b"photo", "x", request_id=f"r{call_number}", seed=call_number, num_images_per_prompt=number
    )
    return call_number, number, result


def assert_own(call_number, number, result):
    assert result.request_id == f"r{call_number}"
    assert result.seeds == tuple(range(call_number, call_number + number))
    assert len(result.images) == number


def test_16_threads_share_one_client(recorder):
    recorder.before_answer = lambda: time.sleep(random.random() * 0.01)
    server, port = serve(recorder, threads=16)
    with InstantIDClient(f"127.0.0.1:{port}") as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: check(client, recorder, i), range(16 * 50)))
    server.stop(None)
    assert len(answers) == 800
    for answer in answers:
        assert_own(*answer)


def test_200_tasks_share_one_client(recorder):
    recorder.before_answer = lambda: time.sleep(random.random() * 0.01)
    server, port = serve(recorder, threads=16)

    async def run():
        async with AsyncInstantIDClient(f"127.0.0.1:{port}") as client:
            calls = [
                client.generate(b"photo", "x", request_id=f"r{i}", seed=i, num_images_per_prompt=i % 4 + 1)
                for i in range(200)
            ]
            return await asyncio.gather(*calls)

    for i, result in enumerate(asyncio.run(run())):
        assert_own(i, i % 4 + 1, result)
    server.stop(None)


def test_use_after_close_is_a_clear_error(call, url):
    with InstantIDClient(url) as client:
        pass
    client.close()
    for method in (lambda: client.generate(b"photo", "x"), client.health):
        with pytest.raises(ClientClosed, match="closed; make a new one"):
            method()


def test_use_after_close_is_a_clear_error_in_asyncio(url):
    async def run():
        async with AsyncInstantIDClient(url) as client:
            await client.health()
        await client.close()
        with pytest.raises(ClientClosed):
            await client.generate(b"photo", "x")

    asyncio.run(run())


def test_closing_ends_the_calls_that_run(url, recorder):
    recorder.delay = 5.0
    client = InstantIDClient(url)
    threading.Timer(0.5, client.close).start()
    start = time.perf_counter()
    with pytest.raises(ClientClosed, match="during the call"):
        client.generate(b"photo", "x")
    assert time.perf_counter() - start < 3


def test_cancelling_a_task_cancels_the_call_on_the_server(url, recorder):
    recorder.delay = 2.0

    async def run():
        async with AsyncInstantIDClient(url) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.generate(b"photo", "x"), 0.5)

    asyncio.run(run())
    assert recorder.cancelled.wait(3)


def test_an_asyncio_client_belongs_to_one_loop(url):
    client = AsyncInstantIDClient(url)
    asyncio.run(client.health())
    with pytest.raises(ClientClosed, match="another event loop"):
        asyncio.run(client.health())


def test_after_a_fork_the_error_is_clear():
    client = FakeClient()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            client.generate(b"photo", "x")
            told = "no error"
        except ClientClosed as error:
            told = str(error)
        os.write(write, told.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"before a fork" in os.read(read, 1000)
    client.generate(b"photo", "x")


def test_time_is_shared_by_all_attempts(call):
    """Two servers that do not answer take no longer than the call's own time."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        urls = [f"127.0.0.1:{silent.getsockname()[1]}" for silent in (one, two)]
        start = time.perf_counter()
        with pytest.raises((DeadlineExceeded, Unreachable)):
            call.generate(urls, timeout=1.0, client={"connect_timeout": 0.8})
        assert time.perf_counter() - start < 2
