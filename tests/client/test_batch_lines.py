"""Wrong lines of `instantid batch`: each is told before anything is sent, or is that line's error alone."""

import pytest

from tests.client.conftest import inputs_of

from .batches import batch, line

pytestmark = pytest.mark.usefixtures("real_pictures")
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


@pytest.mark.parametrize("size", [0, 16 * 1024 * 1024 + 1])
def test_a_photo_of_the_wrong_size_is_a_wrong_line(url, folder, recorder, size):
    (folder / "wrong.png").write_bytes(bytes(size))
    code, told, _ = batch(url, folder, [line("1.png"), line("2.png", photo="wrong.png")])
    assert (code, told[2]["error"]) == (2, "InvalidArgument")
    assert told[2]["message"].startswith("photo[0]: ")
    assert len(recorder.requests) == 1
