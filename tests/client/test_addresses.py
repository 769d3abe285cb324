"""Several servers behind one client: turns, servers that fail, and servers that come back."""

import threading

import pytest

from instantid_client import (
    InstantIDClient,
    InvalidArgument,
    Unreachable,
)
from instantid_client._addresses import Addresses
from tests.client.conftest import Recorder, serve


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
