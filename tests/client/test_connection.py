"""Connections: time limits, options, many threads and tasks, and the end of a client."""

import asyncio
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from instantid_client import (
    AsyncInstantIDClient,
    ClientClosed,
    DeadlineExceeded,
    FakeClient,
    InstantIDClient,
    Unreachable,
)
from instantid_client.transport import Channel
from tests.client.conftest import serve


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


def test_closing_ends_a_call_that_is_about_to_run(url):
    actions = iter([lambda: None, lambda: client.close()])
    client = InstantIDClient(url, token=lambda: str(next(actions)()))
    client.generate(b"photo", "x")
    with pytest.raises(ClientClosed, match="during the call"):
        client.generate(b"photo", "x")


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
