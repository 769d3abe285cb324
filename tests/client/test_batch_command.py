"""`instantid batch`: every line checked before the first is sent, none of them ends the run, all of it told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instantid_client.__main__ import app
from instantid_client.fake import PICTURES
from tests.client.conftest import PREFIX, STATUS

from .batches import batch, line

pytestmark = pytest.mark.usefixtures("real_pictures")


def test_all_painted(url, folder, recorder):
    code, told, summary = batch(url, folder, [line("a.png", seed=1), line("b.png", num_images_per_prompt=2), ""])
    assert code == 0
    assert told[1]["files"] == [str(folder / "a.png")]
    assert [Path(name).name for name in told[2]["files"]] == ["b_0.png", "b_1.png"]
    assert told[1]["seeds"] == [1]
    assert summary == "instantid: 2 painted, 0 there already, 0 failed, 0 wrong lines\n"


def test_errors_do_not_end_it_and_it_resumes(url, folder, recorder):
    recorder.fail, recorder.fail_first = (STATUS.UNAVAILABLE, PREFIX + "Exceeds maximum queue size"), 1
    lines = [line("a.png"), line("b.png"), line("c.png")]
    code, told, summary = batch(url, folder, lines, "--concurrency", 1)
    assert code == 1
    assert told[1]["error"] == "Overloaded"
    assert told[1]["message"] == "Exceeds maximum queue size"
    assert "2 painted, 0 there already, 1 failed" in summary
    code, told, summary = batch(url, folder, lines)
    assert code == 0
    assert told[2]["skipped"]
    assert "1 painted, 2 there already, 0 failed" in summary
    assert len(recorder.requests) == 4


def test_a_failure_counts_more_than_a_wrong_line(url, folder, recorder):
    recorder.fail = (STATUS.INTERNAL, PREFIX + "failed")
    assert batch(url, folder, [line("1.png"), "{"])[0] == 1


@pytest.mark.parametrize("lines", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_done(url, folder, lines):
    assert batch(url, folder, lines)[0] == 0


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "PNG"])
def test_the_suffix_decides_the_format(url, folder, suffix):
    assert batch(url, folder, [line(f"a.{suffix}")])[0] == 0
    kind = {"jpg": "jpeg", "PNG": "png"}.get(suffix, suffix)
    assert (folder / f"a.{suffix}").read_bytes() == PICTURES[kind]


def test_folders_are_made_when_asked_for(url, folder):
    assert batch(url, folder, [line("a/b/1.png")], "--parents")[0] == 0
    assert (folder / "a" / "b" / "1.png").exists()


def test_a_photo_that_is_gone_meanwhile_is_that_line_s_error(url, folder, recorder):
    recorder.before_answer = lambda: (folder / "ok.png").unlink(missing_ok=True)
    code, told, _ = batch(url, folder, [line("1.png"), line("2.png")], "--concurrency", 1)
    assert (code, told[2]["error"]) == (1, "FileNotFoundError")


def test_a_picture_that_cannot_be_kept_is_that_line_s_error(url, folder, recorder):
    recorder.before_answer = lambda: (folder / "1.png").mkdir() if len(recorder.requests) == 1 else None
    code, told, _ = batch(url, folder, [line("1.png"), line("2.png")], "--concurrency", 1)
    assert code == 1
    assert told[1]["error"] == "IsADirectoryError"
    assert "files" in told[2]


def test_lines_from_standard_input(url, folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, ["batch", "-", "--url", url], input=line("1.png"))
    assert done.exit_code == 0
    assert (folder / "1.png").exists()


def test_a_missing_file_is_an_error(url, folder):
    done = CliRunner().invoke(app, ["batch", str(folder / "missing.jsonl"), "--url", url])
    assert done.exit_code == 2


def test_no_server_is_every_line_s_error(folder):
    code, told, summary = batch("127.0.0.1:9", folder, [line("1.png"), line("2.png")])
    assert code == 1
    assert {answer["error"] for answer in told.values()} == {"Unreachable"}
    assert "0 painted, 0 there already, 2 failed" in summary


def test_interrupting_keeps_what_was_painted(url, folder, recorder):
    """Ctrl-C ends it within two seconds, in the middle of requests that take twenty."""
    painted = []

    def slow():
        if len(recorder.requests) > 2:
            time.sleep(20 if not painted else 0)

    recorder.before_answer = slow
    (folder / "jobs.jsonl").write_text("\n".join(line(f"{i}.png") for i in range(6)))
    command = [
        sys.executable,
        "-m",
        "instantid_client",
        "batch",
        folder / "jobs.jsonl",
        "--url",
        url,
        "--concurrency",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ})
    while len(recorder.requests) < 3:
        time.sleep(0.05)
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=10)
    assert time.perf_counter() - start < 2
    painted.append(True)
    assert process.returncode == 130
    assert [json.loads(text)["line"] for text in output.splitlines()] == [1, 2]
    assert "interrupted: 2 painted" in error.decode()
    assert "4 not painted" in error.decode()
    assert sorted(path.name for path in folder.glob("?.png")) == ["0.png", "1.png"]
    assert not list(folder.glob(".*partial"))
    code, _, summary = batch(url, folder, (folder / "jobs.jsonl").read_bytes())
    assert code == 0
    assert "4 painted, 2 there already" in summary
