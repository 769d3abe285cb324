"""Downloads against the operating system: disks that are full, limits, permissions, kills, proxies."""

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

import pytest
from typer.testing import CliRunner

from build_tools.__main__ import app
from build_tools.published.folder import exclusive
from build_tools.published.manifest import WeightsError
from build_tools.published.transfer import Hub, check_space, fetch

from .downloads import (
    BIG,
    CONTENT,
    SIZE,
    SMALL,
    WRITTEN,
    assert_whole,
    download,
    entry,
    get,
    partial,
    place,
    source,
    write_manifest,
)
from .hub import Fault


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
