"""Downloads that fail: no incomplete file stays under its name, messages name the file, and the next run continues."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from build_tools.__main__ import app
from build_tools.published.folder import exclusive
from build_tools.published.manifest import PublishedFile, Source, WeightsError, load_manifest
from build_tools.published.transfer import Hub, check_downloads, check_space, fetch, hash_file, read_lock

from .hub import REVISION, Fault, LoopbackHub
from .published_miniature import toml

SIZE = 24_000_000
WRITTEN = 10 << 20
"""huggingface_hub writes to disk in pieces of this size; what a lost connection sent beyond them is requested again."""
BIG, SMALL = "unet/big.safetensors", "config.json"
CONTENT = {BIG: np.random.default_rng(0).bytes(SIZE), SMALL: b"{}"}


@pytest.fixture(scope="module")
def server():
    with LoopbackHub({"someone/weights": CONTENT}) as hub:
        yield hub


@pytest.fixture
def hub(server):
    server.reset()
    return server


@pytest.fixture
def no_waiting(monkeypatch):
    """huggingface_hub waits a second before it repeats a request."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


def source(published=True):
    files = [PublishedFile(name, len(data), hashlib.sha256(data).hexdigest(), name) for name, data in CONTENT.items()]
    files = files if published else [PublishedFile(BIG, None, None, BIG), *files[1:]]
    return Source("sdxl", "someone/weights", REVISION, "MIT", False, tuple(files))


def get(hub, tmp_path, published=True):
    chosen = source(published)
    fetch([chosen], tmp_path / "published", Hub(hub.url), lambda line: None)
    return chosen


def place(tmp_path, name=BIG):
    return tmp_path / "published/someone/weights" / name


def partial(tmp_path):
    return place(tmp_path, BIG + ".partial")


def assert_whole(tmp_path):
    for name, content in CONTENT.items():
        assert place(tmp_path, name).read_bytes() == content
    assert not list(tmp_path.rglob("*.partial"))


def assert_nothing_half_done(tmp_path, error):
    assert f"someone/weights/{BIG}: " in str(error.value)
    assert "1 of 2 files failed" in str(error.value)
    assert not place(tmp_path).exists()
    assert place(tmp_path, SMALL).read_bytes() == CONTENT[SMALL]


def test_files_arrive_once(hub, tmp_path):
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked == {BIG: [0], SMALL: [0]}
    hub.reset()
    get(hub, tmp_path)
    assert not hub.asked


def test_a_changed_file_is_fetched_again(hub, tmp_path):
    get(hub, tmp_path)
    place(tmp_path).write_bytes(CONTENT[BIG][::-1])
    hub.reset()
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked == {BIG: [0]}


def test_truncated_file_is_continued_by_the_next_run(hub, tmp_path):
    hub.faults[BIG] = Fault(content=CONTENT[BIG][:-1000])
    with pytest.raises(WeightsError) as error:
        get(hub, tmp_path)
    assert_nothing_half_done(tmp_path, error)
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked[BIG] == [0, SIZE - 1000]


def test_wrong_checksum_leaves_nothing(hub, tmp_path):
    hub.faults[BIG] = Fault(content=CONTENT[BIG][:-1] + b"!")
    with pytest.raises(WeightsError) as error:
        get(hub, tmp_path)
    assert str(place(tmp_path)) + ": wrong checksum: sha256 is " in str(error.value)
    assert not place(tmp_path).exists()
    assert not partial(tmp_path).exists()
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked[BIG] == [0, 0]


def test_dropped_connection_is_resumed_at_once(hub, tmp_path, no_waiting):
    hub.faults[BIG] = Fault(drop_at=SIZE // 2)
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked[BIG] == [0, WRITTEN]
    assert hub.sent[BIG] == SIZE + SIZE // 2 - WRITTEN


def test_connection_that_stays_away_is_resumed_by_the_next_run(hub, tmp_path, no_waiting):
    hub.faults[BIG] = Fault(drop_at=SIZE // 2, times=100)
    with pytest.raises(WeightsError) as error:
        get(hub, tmp_path)
    assert_nothing_half_done(tmp_path, error)
    assert partial(tmp_path).stat().st_size == WRITTEN
    hub.reset()
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked[BIG] == [WRITTEN]
    assert hub.sent[BIG] == SIZE - WRITTEN


def test_a_long_transfer_says_now_and_then_what_is_left(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("build_tools.published.transfer.REPORT_SECONDS", 0.2)
    hub.faults[BIG] = Fault(drop_at=SIZE // 2, pause=1)
    lines = []
    fetch([source()], tmp_path / "published", Hub(hub.url), lines.append)
    assert "0.01 GB left" in lines
    assert lines[-1] == f"have someone/weights/{BIG}"


@pytest.mark.parametrize(("left", "asked"), [(SIZE, []), (SIZE + 5, [0]), (SIZE - 5, [SIZE - 5])])
def test_what_an_earlier_run_left_behind(hub, tmp_path, left, asked):
    partial(tmp_path).parent.mkdir(parents=True)
    partial(tmp_path).write_bytes((CONTENT[BIG] + b"other")[:left])
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked.get(BIG, []) == asked


def test_unreachable_hub(tmp_path, no_waiting):
    with pytest.raises(WeightsError, match=f"2 of 2 files failed:\nsomeone/weights/{SMALL}: .*refused"):
        fetch([source()], tmp_path / "published", Hub("http://127.0.0.1:9"), lambda line: None)


def test_revision_that_the_hub_does_not_know(hub, tmp_path):
    known = source()
    other = Source("sdxl", known.repository, "f" * 40, known.licence, False, known.files)
    with pytest.raises(WeightsError, match=f"someone/weights/{BIG}: .*Revision Not Found"):
        fetch([other], tmp_path / "published", Hub(hub.url), lambda line: None)


def test_unpublished_checksum_is_recorded_at_the_first_download(hub, tmp_path):
    chosen = get(hub, tmp_path, published=False)
    key = f"someone/weights@{REVISION}/{BIG}"
    known = hash_file(place(tmp_path))
    assert read_lock(tmp_path / "published") == {key: {"size": SIZE, "sha256": known}}
    place(tmp_path).write_bytes(CONTENT[BIG][:-1] + b"!")
    with pytest.raises(WeightsError, match=f"{BIG}: wrong checksum: .* expected {known}"):
        check_downloads([chosen], tmp_path / "published")
    hub.faults[BIG] = Fault(content=CONTENT[BIG][:-1] + b"!")
    with pytest.raises(WeightsError, match=f"expected {known}"):
        get(hub, tmp_path, published=False)


def test_space_is_checked_first(tmp_path):
    with pytest.raises(WeightsError, match=r"new: needs 1000000.00 GB, the disk has [0-9.]+ GB free"):
        check_space(tmp_path / "new", 10**15)
    assert not (tmp_path / "new").exists()


def test_declared_size_beyond_the_disk_asks_the_hub_for_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("build_tools.published.cli.Hub", lambda: Hub(hub.url))
    manifest = write_manifest(tmp_path, {**entry(BIG), "size": 10**15})
    result = CliRunner().invoke(app, download(tmp_path / "published", manifest))
    assert result.exit_code == 1
    assert f"{tmp_path / 'published'}: needs 1000000.00 GB" in result.output
    assert not hub.asked


def test_full_disk(hub, tmp_path):
    """On a file system of its own with 15 MB, which is enlarged for the second run."""
    manifest = write_manifest(tmp_path, entry(BIG))
    small, command = tmp_path / "small", f"{sys.executable} -m build_tools "
    small.mkdir()
    script = f"""
        mount -t tmpfs -o size=15m none {small} || exit 77
        {command + " ".join(download(small, manifest))} || echo "exit $?"
        find {small} -name '*.safetensors'
        mount -o remount,size=60m none {small}
        {command + " ".join(download(small, manifest))}
        sha256sum {small}/someone/weights/{BIG}
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env={**os.environ, "HF_ENDPOINT": hub.url}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system of its own may be mounted here")
    assert f"someone/weights/{BIG}: [Errno {errno.ENOSPC}]" in done.stderr
    assert done.stdout.splitlines()[0] == "exit 1"
    assert len(done.stdout.splitlines()) == 2, "a file under its final name although the disk was full"
    assert hashlib.sha256(CONTENT[BIG]).hexdigest() in done.stdout
    assert hub.asked[BIG][0] == 0
    assert WRITTEN <= hub.asked[BIG][1] <= 15 << 20


def test_file_size_limit_of_the_process(hub, tmp_path):
    """A write fails in the middle; this needs no mounted file system."""
    command = [sys.executable, "-m", "build_tools", *download("published", write_manifest(tmp_path, entry(BIG)))]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 15000; exec "$@"', "-", *command],
        cwd=tmp_path, env={**os.environ, "HF_ENDPOINT": hub.url}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"someone/weights/{BIG}: [Errno {errno.EFBIG}]" in done.stderr
    assert not place(tmp_path).exists()
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert WRITTEN <= hub.asked[BIG][1] <= 15000 * 1024


def test_no_permission(hub, tmp_path):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o555)
        chosen = source()
        with ordinary_user(), pytest.raises(WeightsError, match=rf"{SMALL}: \[Errno {errno.EACCES}\].*{folder}"):
            fetch([chosen], folder, Hub(hub.url), lambda line: None)
        assert not list(folder.iterdir())
        assert not hub.asked
    finally:
        shutil.rmtree(folder)


@contextmanager
def ordinary_user():
    """Run the block as the user nobody if we are root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_where_a_folder_must_be(hub, tmp_path):
    (tmp_path / "published").mkdir()
    (tmp_path / "published/someone").write_text("a file")
    with pytest.raises(WeightsError, match=f"someone/weights/{SMALL}: .*(File exists|Not a directory)"):
        get(hub, tmp_path)


def test_killed_in_the_middle(hub, tmp_path):
    hub.faults[BIG] = Fault(drop_at=SIZE * 2 // 3, pause=60)
    manifest = write_manifest(tmp_path, entry(BIG))
    process = subprocess.Popen(
        [sys.executable, "-m", "build_tools", *download("published", manifest)],
        cwd=tmp_path, env={**os.environ, "HF_ENDPOINT": hub.url}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (partial(tmp_path).exists() and partial(tmp_path).stat().st_size >= WRITTEN):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not place(tmp_path).exists()
    hub.faults.clear()
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked[BIG] == [0, WRITTEN]


def test_two_at_once(tmp_path):
    with exclusive(tmp_path), pytest.raises(WeightsError, match="another process"), exclusive(tmp_path):
        pass


def test_through_a_proxy(hub, tmp_path):
    settings = {"HF_ENDPOINT": "http://hub.invalid", "http_proxy": hub.url, "no_proxy": ""}
    manifest = write_manifest(tmp_path, entry(BIG))
    done = subprocess.run(
        [sys.executable, "-m", "build_tools", *download("published", manifest)],
        cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert place(tmp_path).read_bytes() == CONTENT[BIG]


def entry(name):
    return {"path": name, "size": "unpublished", "sha256": "unpublished", "to": name}


def write_manifest(folder, file):
    table = {"repository": "someone/weights", "revision": REVISION, "licence": "MIT", "must_accept": False}
    (folder / "weights.toml").write_text(toml({"sdxl": {**table, "files": [file]}}))
    return folder / "weights.toml"


def download(output, manifest):
    return ["weights", "download", "--output", str(output), "--manifest", str(manifest)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": "main"}, "sdxl.revision: .* match pattern"),
        ({"licence": None}, "sdxl.licence: Field required"),
        ({"kind": "onnx"}, "sdxl.kind: Unexpected keyword argument"),
        ({"files": [{"path": "a", "size": 1, "sha256": "0" * 63, "to": "b"}]}, "files.0.sha256: .* match pattern"),
        ({"files": [{"path": "a", "size": 0, "sha256": "0" * 64, "to": "b"}]}, "files.0.size: .* greater than 0"),
        ({"files": [{"path": "a", "size": 1, "sha256": "0" * 64}]}, "files.0: .*a: needs either to or members"),
        ({"files": [{"path": "a", "size": 1, "to": "b"}]}, "files.0.sha256: Field required"),
    ],
)
def test_manifest_of_another_form(tmp_path, change, message):
    table = {"repository": "a/b", "revision": REVISION, "licence": "MIT", "must_accept": False, "files": [], **change}
    path = tmp_path / "weights.toml"
    path.write_text(toml({"sdxl": {key: value for key, value in table.items() if value is not None}}))
    with pytest.raises(WeightsError, match=message):
        load_manifest(path)
