"""Results, batches, fakes and the log."""

import asyncio
import errno
import logging
import os
import pickle
import threading
import time

import pytest
from PIL import Image

from instantid_client import (
    AsyncFakeClient,
    AsyncInstantIDClient,
    FakeClient,
    InstantIDClient,
    InvalidArgument,
    Overloaded,
    Routing,
)
from instantid_client.fake import PICTURES


@pytest.fixture
def result():
    return FakeClient().generate(b"photo", "a secret prompt", num_images_per_prompt=2, seed=7, request_id="r1")


def test_repr_is_one_line_without_pictures(result):
    assert repr(result).startswith("GenerationResult(2 pictures, seeds (7, 8), request r1, ")
    assert len(repr(result)) < 100
    assert "\n" not in repr(result)


def test_save_writes_whole_files(result, tmp_path):
    paths = result.save(tmp_path / "a.png")
    assert [path.name for path in paths] == ["a_0.png", "a_1.png"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert Image.open(paths[1]).size == (1, 1)
    one = FakeClient().generate(b"photo", "x").save(str(tmp_path / "b.png"))
    assert one == (tmp_path / "b.png",)


@pytest.mark.parametrize("length", [246, 247, 250, 255])
def test_save_takes_every_name_that_the_file_system_takes(tmp_path, length):
    path = tmp_path / ("a" * (length - 4) + ".png")
    assert FakeClient().generate(b"photo", "x").save(path) == (path,)
    assert path.exists()


def test_save_refuses_a_suffix_of_another_format(result, tmp_path):
    with pytest.raises(ValueError, match="output_format='jpeg'"):
        result.save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_save_leaves_nothing_behind_where_it_fails(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError, match=r"a\.png"):
        FakeClient().generate(b"photo", "x").save(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_full_disk_leaves_no_partial_file(tmp_path, monkeypatch):
    def full(self, data):
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        FakeClient().generate(b"photo", "x").save(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_notebooks_show_the_first_picture(kind):
    result = FakeClient().generate(b"photo", "x", output_format=kind)
    assert result._repr_png_() == (PICTURES["png"] if kind == "png" else None)
    assert result._repr_jpeg_() == (PICTURES["jpeg"] if kind == "jpeg" else None)
    assert result._repr_mimebundle_()[f"image/{kind}"] == PICTURES[kind]


def test_results_survive_pickling(result):
    assert pickle.loads(pickle.dumps(result)) == result


def test_timings_have_their_parts(result):
    assert set(result.timings) == {"prepare", "call", "total"}
    assert result.timings["prepare"] + result.timings["call"] <= result.timings["total"] == result.seconds


def test_the_log_has_ids_and_times_and_no_contents(caplog):
    caplog.set_level(logging.DEBUG, "instantid_client")

    def busy(request):
        raise Overloaded("the prompt was a secret")

    FakeClient().generate(b"secret photo", "secret prompt", request_id="r1", negative_prompt="secret")
    with pytest.raises(Overloaded):
        FakeClient(busy, token="secret", metadata={"a": "secret"}).generate(b"secret", "secret", request_id="r2")
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "r1" in text
    assert "r2" in text
    assert "Overloaded" in text
    assert "secret" not in text
    assert {record.name for record in caplog.records} == {"instantid_client"}


def test_a_fake_sees_what_a_server_would():
    client = FakeClient(lambda request: b"mine", metadata={"A": "b"}, routing=Routing("acme"))
    result = client.generate([b"one", b"two"], "x", width=512, guidance_scale=2.5, timeout=5)
    assert result.images == (b"mine",)
    (request,) = client.requests
    assert request.values == {"photo": (b"one", b"two"), "prompt": "x", "width": 512, "guidance_scale": 2.5}
    assert request.parameters["tenant"] == "acme"
    assert request.metadata == {"a": "b"}
    assert 4 < request.timeout <= 5
    assert client.health().ready
    with pytest.raises(InvalidArgument):
        client.generate(b"one", "x", width=7)


def test_a_fake_for_asyncio():
    async def run():
        async with AsyncFakeClient(lambda request: [b"a", b"b"]) as client:
            assert (await client.generate(b"one", "x", num_images_per_prompt=2)).images == (b"a", b"b")
            assert len(client.requests) == 1
            assert (await client.health()).ready

    asyncio.run(run())


def wanted(count):
    return [{"photo": b"photo", "prompt": str(i), "seed": i} for i in range(count)]


def test_batch_gives_results_and_errors_as_they_complete(call, url, recorder):
    requests = [*wanted(5), {"photo": b"photo", "prompt": "x", "seed": -1}, {"photo": "missing.png", "prompt": "x"}]
    items = list(call(url, "batch", requests, concurrency=3))
    assert sorted(item.index for item in items) == list(range(7))
    for item in items:
        assert item.request is requests[item.index]
        assert (item.result is None) == (item.index > 4)
        if item.result:
            assert item.result.seeds == (item.index,)
    errors = {item.index: type(item.error) for item in items if item.error}
    assert errors == {5: InvalidArgument, 6: FileNotFoundError}


def test_batch_reads_requests_only_as_there_is_room(url):
    drawn = []

    def requests():
        for request in wanted(20):
            drawn.append(request)
            yield request

    with InstantIDClient(url) as client:
        items = client.batch(requests(), concurrency=2)
        next(items)
        assert len(drawn) <= 3
        items.close()


def test_at_most_concurrency_requests_run_at_once(call, url, recorder):
    running, most, lock = [0], [0], threading.Lock()

    def count():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1

    recorder.before_answer = count
    list(call(url, "batch", wanted(8), concurrency=3))
    assert most[0] == 3


def test_leaving_an_asyncio_batch_cancels_what_runs(url, recorder):
    recorder.delay = 2.0

    async def run():
        async with AsyncInstantIDClient(url) as client:
            async for _ in client.batch(wanted(4), concurrency=2):
                pass

    async def interrupted():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(run(), 0.5)

    start = time.perf_counter()
    asyncio.run(interrupted())
    assert time.perf_counter() - start < 1.5
    assert recorder.cancelled.wait(3)
    assert len(recorder.requests) == 2


def test_concurrency_is_checked():
    with pytest.raises(ValueError, match="concurrency: 0"):
        list(FakeClient().batch(wanted(1), concurrency=0))
