"""The command `instantid`: what is sent, what is written, what is said when something is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instantid_client import __version__, contract
from instantid_client.__main__ import app
from instantid_client.fake import PICTURES
from tests.client.conftest import PREFIX, STATUS

pytestmark = pytest.mark.usefixtures("real_pictures")


def run(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def generate(url, photo, output, *arguments, **options):
    return run("generate", photo, "--prompt", "x", "-o", output, "--url", url, *arguments, **options)


def test_generate(url, recorder, photo, tmp_path):
    out = tmp_path / "out.webp"
    options = ["--num-inference-steps", 8, "--ip-adapter-scale", 0.5, "--metadata", "X-A=b", "--tenant", "acme"]
    done = run("generate", photo, photo, "--prompt", "x", "-o", out, "--url", url, "--json", "--priority", 1, *options)
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == PICTURES["webp"]
    assert recorder.inputs() == {
        "photo": [b"photo"] * 2, "prompt": [b"x"], "output_format": [b"webp"], "num_inference_steps": [8],
        "ip_adapter_scale": [0.5],
    }  # fmt: skip
    assert recorder.metadata["x-a"] == "b"
    assert recorder.requests[-1].parameters["tenant"].string_param == "acme"
    assert recorder.requests[-1].parameters["priority_level"].int64_param == 1
    answer = json.loads(done.stdout)
    assert answer["seeds"] == [5]
    assert answer["face"]["score"] == 0.9
    assert answer["report"] == [{"i": 0}]
    assert answer["files"] == [str(out)]


def test_every_option_of_the_contract_is_a_flag_with_its_bounds(url, recorder, photo, tmp_path):
    help_ = run("generate", "--help").output
    for option in contract.OPTIONS:
        if option.name in contract.REQUIRED:
            continue
        flag = f"--{option.name.replace('_', '-')}"
        assert flag in help_
        values = {"negative_prompt": "n", "pose_photo": photo, "output_format": "png"}
        largest = "n" if isinstance(option, contract.Text) else getattr(option, "high", option.default)
        value = values.get(option.name, largest)
        done = generate(url, photo, tmp_path / f"{option.name}.png", flag, value)
        assert done.exit_code == 0, done.output
        (sent,) = recorder.inputs()[option.name]
        assert sent == (
            b"photo" if option.name == "pose_photo" else value.encode() if isinstance(value, str) else value
        )
        if isinstance(option, (contract.Number, contract.Side, contract.Choice)):
            wrong = "other" if isinstance(option, contract.Choice) else option.high + 1
            assert generate(url, photo, tmp_path / "wrong.png", flag, wrong).exit_code == 2


def test_several_pictures_and_only_what_may_be_overwritten(url, photo, tmp_path):
    command = url, photo, tmp_path / "o.png", "--num-images-per-prompt", 2
    assert generate(*command).exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("o*")) == ["o_0.png", "o_1.png"]
    assert generate(*command).exit_code == 2
    assert generate(*command, "--force").exit_code == 0


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".JPG"])
def test_the_suffix_decides_the_format(url, photo, tmp_path, suffix):
    kind = {".png": "png", ".webp": "webp"}.get(suffix, "jpeg")
    out = tmp_path / f"o{suffix}"
    assert generate(url, photo, out).exit_code == 0
    assert out.read_bytes() == PICTURES[kind]
    assert generate(url, photo, out, "--force", "--output-format", kind).exit_code == 0
    other = "png" if kind != "png" else "webp"
    assert "the suffix says" in generate(url, photo, out, "--force", "--output-format", other).stderr


@pytest.fixture
def unwritable():
    """A folder where not even root can write."""
    return Path("/proc/self")


def test_outputs_are_checked_before_anything_is_sent(url, recorder, photo, tmp_path, unwritable):
    wrong = {
        tmp_path / "o.gif": "must be one of .png, .jpg, .jpeg, .webp",
        tmp_path / "o": "no suffix",
        tmp_path / "missing" / "o.png": "no such folder",
        tmp_path / ("a" * 252 + ".png"): "too long",
        unwritable / "o.png": "",
        photo / "o.png": "",
    }
    (tmp_path / "folder.png").mkdir()
    wrong[tmp_path / "folder.png"] = "is a folder"
    for out, text in wrong.items():
        done = generate(url, photo, out)
        assert done.exit_code == 2, out
        assert text in done.stderr
        assert "Traceback" not in done.output
    assert not recorder.requests


def test_parents_are_made_when_asked_for(url, photo, tmp_path):
    assert generate(url, photo, tmp_path / "a" / "b" / "o.png", "--parents").exit_code == 0
    assert (tmp_path / "a" / "b" / "o.png").exists()


@pytest.mark.parametrize("length", [246, 247, 255])
def test_long_names_are_written(url, photo, tmp_path, length):
    out = tmp_path / ("a" * (length - 4) + ".png")
    assert generate(url, photo, out).exit_code == 0
    assert out.exists()


def test_photo_from_standard_input_and_picture_to_standard_output(url, recorder, photo):
    done = generate(url, "-", "-", "--output-format", "webp", input=b"from a pipe")
    assert done.exit_code == 0, done.stderr
    assert recorder.inputs()["photo"] == [b"from a pipe"]
    assert done.stdout_bytes == PICTURES["webp"]
    assert generate(url, "-", "-", "--num-images-per-prompt", 2, input=b"x").exit_code == 2
    assert run("generate", "-", "-", "--prompt", "x", "-o", "-", "--url", url, input=b"x").exit_code == 2


def test_environment_variables(url, recorder, photo, tmp_path, monkeypatch):
    monkeypatch.setenv("INSTANTID_URL", url)
    monkeypatch.setenv("INSTANTID_TENANT", "acme")
    monkeypatch.setenv("INSTANTID_TOKEN", "t")
    monkeypatch.setenv("INSTANTID_METADATA", "X-A=1, x-b=a%2Cb,x-c=over")
    done = run("generate", photo, "--prompt", "x", "-o", tmp_path / "o.png", "--metadata", "x-c=flag")
    assert done.exit_code == 0, done.stderr
    assert recorder.requests[-1].parameters["tenant"].string_param == "acme"
    metadata = {name: recorder.metadata[name] for name in ("authorization", "x-a", "x-b", "x-c")}
    assert metadata == {"authorization": "Bearer t", "x-a": "1", "x-b": "a,b", "x-c": "flag"}
    monkeypatch.setenv("INSTANTID_METADATA", "nothing")
    assert "must be NAME=VALUE" in run("health").stderr


def test_several_addresses(url):
    done = run("health", "--url", f"127.0.0.1:9, {url}")
    assert done.exit_code == 0
    state = json.loads(done.stdout)
    assert state["ready"]
    assert [server["live"] for server in state["servers"]] == [False, True]
    assert run("health", "--url", "127.0.0.1:9").exit_code == 1


def test_retries(url, recorder, photo, tmp_path):
    recorder.fail, recorder.fail_first = (STATUS.UNAVAILABLE, PREFIX + "Exceeds maximum queue size"), 1
    assert generate(url, photo, tmp_path / "o.png").exit_code == 1
    recorder.requests.clear()
    assert generate(url, photo, tmp_path / "o.png", "--retries", 2).exit_code == 0


def test_version_and_completion():
    assert run("--version").output == f"instantid {__version__}\n"
    assert "--install-completion" in run("--help").output


def test_verbose_logs_ids_and_no_contents(url, photo, tmp_path):
    command = [sys.executable, "-m", "instantid_client", "-v", "generate", photo, "--prompt", "secret", "-o", "-"]
    done = subprocess.run([*command, "--url", url], capture_output=True, check=True)
    assert done.stdout == PICTURES["png"]
    assert b"answered by" in done.stderr
    assert b"secret" not in done.stderr


@pytest.mark.parametrize(("status", "code"), [(STATUS.INVALID_ARGUMENT, 2), (STATUS.INTERNAL, 1)])
def test_errors_are_one_line_and_an_exit_code(url, recorder, photo, tmp_path, status, code):
    recorder.fail = (status, PREFIX + "width: 100; must be a multiple of 64")
    done = generate(url, photo, tmp_path / "result.png")
    assert done.exit_code == code
    assert done.stderr == "instantid: width: 100; must be a multiple of 64\n"
    assert not list(tmp_path.glob("*result*"))


def test_a_missing_photo_is_an_error(url, recorder, tmp_path):
    assert generate(url, tmp_path / "missing.png", tmp_path / "o.png").exit_code == 2
    assert not recorder.requests
