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
from tests.client.conftest import PREFIX, STATUS, framed, inputs_of, serve

QUICK = {"num_inference_steps": 1, "guidance_scale": 1}


@pytest.fixture
def url(recorder):
    plain = recorder.answer

    def answer(request):
        made = plain(request)
        kind = inputs_of(request)["output_format"][0].decode()
        made.raw_output_contents[0] = framed(*[PICTURES[kind]] * made.outputs[0].shape[0])
        return made

    recorder.answer = answer
    server, port = serve(recorder)
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ok.png").write_bytes(b"photo")
    return tmp_path


def line(output, **fields):
    return json.dumps({"photo": "ok.png", "prompt": "a", "output": output, **QUICK, **fields})


def batch(url, folder, lines, *arguments, stdin=None):
    """The exit code, what was printed for each line by its number, and the summary."""
    data = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
    (folder / "jobs.jsonl").write_bytes(data)
    done = CliRunner().invoke(app, ["batch", str(folder / "jobs.jsonl"), "--url", url, *map(str, arguments)])
    assert "Traceback" not in done.output
    told = [json.loads(text) for text in done.stdout.splitlines()]
    assert len({answer["line"] for answer in told}) == len(told)
    return done.exit_code, {answer["line"]: answer for answer in told}, done.stderr


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


BROKEN = {
    "not JSON": ("{", "JSONDecodeError"),
    "an array": ("[]", "InvalidArgument"),
    "a text": ('"a"', "InvalidArgument"),
    "null": ("null", "InvalidArgument"),
    "two objects": ("{} {}", "JSONDecodeError"),
    "too deep": ("[" * 100_000, "RecursionError"),
    "no prompt": ('{"photo": "ok.png", "output": "2.png"}', "InvalidArgument"),
    "no photo": ('{"prompt": "a", "output": "2.png"}', "InvalidArgument"),
    "no output": ('{"prompt": "a", "photo": "ok.png"}', "InvalidArgument"),
    "null prompt": (line("2.png", prompt=None), "InvalidArgument"),
    "empty prompt": (line("2.png", prompt=""), "InvalidArgument"),
    "lone surrogate": (line("2.png", prompt="\ud800"), "InvalidArgument"),
    "lone surrogate in a name": (line("\ud800.png"), "UnicodeEncodeError"),
    "NUL in a name": (line("a\0.png"), "InvalidArgument"),
    "unknown option": (line("2.png", steps=3), "TypeError"),
    "seed past int64": (line("2.png", seed=13930481230987123456), "InvalidArgument"),
    "seed of 5000 digits": (line("2.png")[:-1] + ', "seed": ' + "9" * 5000 + "}", "ValueError"),
    "steps past int32": (line("2.png", num_inference_steps=2**32 + 1), "InvalidArgument"),
    "NaN": (line("2.png", guidance_scale=float("nan")), "InvalidArgument"),
    "text for a number": (line("2.png", seed="7"), "InvalidArgument"),
    "object for a number": (line("2.png", width={}), "InvalidArgument"),
    "missing photo": (line("2.png", photo="missing.png"), "FileNotFoundError"),
    "missing second photo": (line("2.png", photo=["ok.png", "missing.png"]), "FileNotFoundError"),
    "photo is a folder": (line("2.png", photo="."), "FileNotFoundError"),
    "photo is a number": (line("2.png", photo=3), "InvalidArgument"),
    "no photos": (line("2.png", photo=[]), "InvalidArgument"),
    "five photos": (line("2.png", photo=["ok.png"] * 5), "InvalidArgument"),
    "missing pose photo": (line("2.png", pose_photo="missing.png"), "FileNotFoundError"),
    "unknown suffix": (line("2.gif"), "ValueError"),
    "no suffix": (line("2"), "ValueError"),
    "missing folder": (line("nowhere/2.png"), "FileNotFoundError"),
    "output is a folder": (line("folder.png"), "IsADirectoryError"),
    "folder that cannot be written": (line("/proc/self/2.png"), "OSError"),
    "name too long": (line("a" * 252 + ".png"), "OSError"),
    "suffix against format": (line("2.png", output_format="webp"), "InvalidArgument"),
    "the same output": (line("1.png", seed=1), "InvalidArgument"),
    "the same output, spelt otherwise": (line("./folder.png/../1.png"), "InvalidArgument"),
    "one output of several is taken": (line("x.png", num_images_per_prompt=2), "InvalidArgument"),
    "not UTF-8": (b'{"photo": "ok.png", "prompt": "\xff", "output": "2.png"}', "UnicodeDecodeError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_line_in_the_middle(url, folder, recorder, kind):
    (folder / "folder.png").mkdir()
    broken, error = BROKEN[kind]
    broken = broken if isinstance(broken, bytes) else broken.encode()
    first, last = line("1.png").encode(), line("x_1.png").encode()
    lines = [first, last, broken] if "several" in kind else [first, broken, last]
    code, told, summary = batch(url, folder, b"\n".join(lines))
    assert code == 2
    number = lines.index(broken) + 1
    answer = told.pop(number)
    accepted = {error, "PermissionError", "FileNotFoundError"} if error == "OSError" else {error}
    assert answer["error"] in accepted
    assert len(answer["message"]) < 500
    assert all("files" in other for other in told.values())
    assert (folder / "1.png").exists()
    assert (folder / "x_1.png").exists()
    assert "2 painted, 0 there already, 0 failed, 1 wrong lines" in summary
    assert len(recorder.requests) == 2


def test_wrong_lines_are_told_before_anything_is_sent(url, folder, recorder):
    code, told, _ = batch(url, folder, [line("1.png"), "{", line("nowhere/3.png")])
    assert list(told) == [2, 3, 1]
    assert code == 2


def test_a_failure_counts_more_than_a_wrong_line(url, folder, recorder):
    recorder.fail = (STATUS.INTERNAL, PREFIX + "failed")
    assert batch(url, folder, [line("1.png"), "{"])[0] == 1


def test_fields_and_bounds_are_named(url, folder):
    _, told, _ = batch(url, folder, [line("1.png", seed=13930481230987123456)])
    assert told[1]["message"] == "seed: 13930481230987123456; must be within 0..9007199254740991"


def test_lines_end_at_newlines_only(url, folder, recorder):
    """Other separators of Unicode are legal inside a JSON text."""
    text = "first\u2028second\u2029third\x0b\x0c\x1c\x85fourth"
    unescaped = '{"photo": "ok.png", "prompt": "a\u2028b\u2029c\u0085d", "output": "2.png"}'
    code, told, _ = batch(url, folder, f"{line('1.png', prompt=text)}\r\n{unescaped}\n".encode())
    assert code == 0
    assert set(told) == {1, 2}
    prompts = {inputs_of(request)["prompt"][0].decode() for request in recorder.requests}
    assert prompts == {text, "a\u2028b\u2029c\u0085d"}


def test_a_byte_order_mark_is_skipped(url, folder):
    assert batch(url, folder, b"\xef\xbb\xbf" + line("1.png").encode())[0] == 0


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


@pytest.mark.parametrize("size", [0, 16 * 1024 * 1024 + 1])
def test_a_photo_of_the_wrong_size_is_a_wrong_line(url, folder, recorder, size):
    (folder / "wrong.png").write_bytes(bytes(size))
    code, told, _ = batch(url, folder, [line("1.png"), line("2.png", photo="wrong.png")])
    assert (code, told[2]["error"]) == (2, "InvalidArgument")
    assert told[2]["message"].startswith("photo[0]: ")
    assert len(recorder.requests) == 1


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
