"""The image: its recipe linted, its packages resolved, its entry point run on the embedded server. It is not built."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from skimage import data

from build_tools.embedded import layout
from build_tools.embedded.options import Ports, ServerOptions
from build_tools.embedded.server import choose_ports
from build_tools.weights import make_miniature
from instantid_client import InstantIDClient
from tests.server.conftest import encoded

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text()
INSTRUCTIONS = [shlex.split(line) for line in DOCKERFILE.replace("\\\n", "").splitlines() if line[:1].isupper()]
STAGES = [words[-1] for words in INSTRUCTIONS if words[0] == "FROM"]


def run(*command, **options):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, **options)


def sources(words):
    return [word for word in words[1:-1] if not word.startswith("--")]


def test_recipe_and_scripts_pass_their_linters():
    scripts = run("git", "ls-files", "*.sh", ".ci/run", cwd=ROOT).stdout.split()
    for command in ([BIN / "hadolint", "deploy/docker/Dockerfile"], [BIN / "shellcheck", *scripts]):
        result = run(*command, cwd=ROOT)
        assert result.returncode == 0, result.stdout


def test_every_source_exists_and_reaches_the_build():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for words in INSTRUCTIONS:
        if words[0] == "COPY" and not any(word.startswith("--from=") for word in words):
            for source in sources(words):
                assert (ROOT / source).exists(), source
                assert source in kept, f"{source} is in .dockerignore"


def test_the_default_target_serves_without_root_and_without_tools():
    assert STAGES[-1] == "serve"
    serve = INSTRUCTIONS[[words[-1] == "serve" for words in INSTRUCTIONS].index(True) :]
    assert [words for words in serve if words[0] == "USER"] == [["USER", "1000:1000"]]
    copied = [source for words in serve if words[0] == "COPY" for source in sources(words)]
    assert copied == ["model_repository", "deploy/docker/entrypoint.sh"]


def test_nothing_in_the_image_reports_to_anybody():
    runtime = INSTRUCTIONS[[words[-1] == "runtime" for words in INSTRUCTIONS].index(True) :]
    environment = {word for words in runtime if words[0] == "ENV" for word in words[1:]}
    assert {"ORT_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_TELEMETRY=1"} <= environment


def test_the_image_is_pinned_alike_for_docker_and_compose():
    image = re.search(r"^ARG TRITON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", image)
    assert yaml.safe_load((ROOT / "docker-compose.yml").read_text())["x-build"]["args"] == {
        "TRITON_IMAGE": f"${{TRITON_IMAGE:-{image}}}"
    }
    assert image in (ROOT / "docs/operations.md").read_text()


@pytest.fixture(scope="module")
def serving_wheel(tmp_path_factory):
    """Built from what the stage `serving` copies."""
    folder = tmp_path_factory.mktemp("build")
    stage = INSTRUCTIONS[[words[-1] == "serving" for words in INSTRUCTIONS].index(True) :]
    for words in stage[1:3]:
        for source in sources(words):
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, folder / source)
    shutil.rmtree(folder / "src/instantid_triton.egg-info", ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    result = run(*pip, folder)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


def test_the_serving_wheel_holds_nothing_but_the_package(serving_wheel):
    with ZipFile(serving_wheel) as wheel:
        top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"instantid"}


@pytest.mark.long
@pytest.mark.parametrize("extras", ["server", "build,loadtest"])
def test_the_locked_packages_resolve_to_wheels_for_the_images_python(extras, serving_wheel, tmp_path):
    """Asks the package index; Ubuntu 24.04 has glibc 2.39."""
    where = ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_39", "--target", tmp_path]
    lock = ["--constraint", ROOT / "constraints/3.12.txt", "--only-binary", ":all:"]
    result = run(BIN / "uv", "pip", "install", "--dry-run", *where, *lock, f"{serving_wheel}[{extras}]")
    assert result.returncode == 0, result.stderr
    assert " + torch==" in result.stderr
    assert " + nvidia-cudnn-cu13==" in result.stderr


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """A folder laid out like /opt/instantid, and the environment of a process in it; `tritonserver` is a real one."""
    folder = tmp_path_factory.mktemp("opt")
    shutil.copytree(ROOT / "model_repository", folder / "model_repository", ignore=shutil.ignore_patterns("*.onnx"))
    (folder / "model_repository/face_analysis/1").mkdir(exist_ok=True)
    (folder / "bin").mkdir()
    shutil.copy(ROOT / "deploy/docker/entrypoint.sh", folder / "bin/serve")
    weights = ROOT / "weights/miniature"
    if not (weights / "profile.json").is_file():
        make_miniature(weights)
    libraries = layout.child_environment({})["LD_LIBRARY_PATH"]
    backends = layout.make_backend_directory(folder / "backends")
    shim = folder / "shim/tritonserver"
    shim.parent.mkdir()
    shim.write_text(
        f"#!/bin/sh\nexport LD_LIBRARY_PATH='{libraries}'\n"
        f"exec '{layout.server_binary()}' --backend-directory='{backends}' \"$@\"\n"
    )
    shim.chmod(0o755)
    path = f"{shim.parent}:{BIN}:{os.environ['PATH']}"
    return folder, {**os.environ, "PATH": path, "INSTANTID_WEIGHTS": str(weights)}


def flags_of_the_entry_point(container, **environment):
    """What it gives to tritonserver, read from a stand-in that prints its arguments."""
    folder, inherited = container
    stand_in = folder / "echo/tritonserver"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{inherited['PATH']}"
    result = run(folder / "bin/serve", env={**inherited, "PATH": path, **environment})
    assert result.returncode == 0, result.stderr
    words = [line.removeprefix("--").partition("=") for line in result.stdout.splitlines()]
    return {name: value for name, _, value in words}


def test_without_weights_it_says_so(container, tmp_path):
    folder, environment = container
    result = run(folder / "bin/serve", env={**environment, "INSTANTID_WEIGHTS": str(tmp_path)})
    assert result.returncode == 1
    assert result.stderr == f"no weights in {tmp_path}: {tmp_path}/face_analysis.onnx is missing\n"


def test_flags_are_triton_s_and_agree_with_the_embedded_server(container, tmp_path):
    ours = flags_of_the_entry_point(container)
    embedded = layout.command_line(ServerOptions(tmp_path, tmp_path), Ports(), tmp_path, "prefix_")[1:]
    theirs = {name: value for name, _, value in (word.removeprefix("--").partition("=") for word in embedded)}
    places = {"model-repository", "backend-config", "exit-timeout-secs"}
    both = set(ours) & set(theirs) - places
    assert both == {"model-control-mode", "disable-auto-complete-config", "log-format", "log-verbose"}
    assert {name: ours[name] for name in both} == {name: theirs[name] for name in both}
    assert set(theirs) - set(ours) == {
        *("backend-directory", "model-config-name", "grpc-address", "http-address", "metrics-address"),
        *("grpc-port", "http-port", "metrics-port"),
    }
    known = run(layout.server_binary(), "--help", env=layout.child_environment({}))
    assert set(ours) <= set(re.findall(r"^  --([a-z0-9-]+)", known.stdout + known.stderr, re.MULTILINE))


def test_settings_reach_triton_and_the_admin_key_comes_from_a_file(container, tmp_path):
    (tmp_path / "key").write_text("abc\n")
    set_by_operator = flags_of_the_entry_point(
        container,
        TRITON_ADMIN_KEY_FILE=str(tmp_path / "key"),
        TRITON_EXIT_TIMEOUT="7",
        TRITON_PINNED_MEMORY_MB="1",
        TRITON_KEEPALIVE_SECONDS="5",
        TRITON_LOG_VERBOSE="1",
        TRITON_METRICS_INTERVAL_MS="100",
    )
    assert set_by_operator["grpc-restricted-protocol"].endswith("statistics:admin-key=abc")
    assert set_by_operator["http-restricted-api"] == set_by_operator["grpc-restricted-protocol"]
    assert {
        name: int(set_by_operator[name]) for name in ("exit-timeout-secs", "log-verbose", "metrics-interval-ms")
    } == {
        "exit-timeout-secs": 7,
        "log-verbose": 1,
        "metrics-interval-ms": 100,
    }
    assert set_by_operator["pinned-memory-pool-byte-size"] == str(1 << 20)
    assert set_by_operator["grpc-keepalive-time"] == "5000"
    drawn = [flags_of_the_entry_point(container)["http-restricted-api"].partition("=")[2] for _ in range(2)]
    assert len(set(drawn)) == 2
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in drawn)


@contextmanager
def started(container, ports, log):
    folder, environment = container
    where = [f"--{name}-port={getattr(ports, name)}" for name in ("grpc", "http", "metrics")]
    # In the image the entry point is process 1, and the only one that is told to stop.
    process = subprocess.Popen(
        [folder / "bin/serve", "--model-config-name=cpu", *where], env=environment, stdout=log, stderr=log
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def health_check(http_port):
    """The command of the image's HEALTHCHECK, on the port of this server."""
    (words,) = [line for line in DOCKERFILE.replace("\\\n", "").splitlines() if line.startswith("HEALTHCHECK")]
    command = json.loads(words.partition("CMD ")[2])
    return run(*(word.replace(":8000", f":{http_port}") for word in command)).returncode == 0


def status_of_admin(http_port, key):
    url = f"http://localhost:{http_port}/v2/repository/index"
    try:
        request = urllib.request.Request(url, data=b"", headers={"admin-key": key}, method="POST")
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_entry_point_serves_a_picture_and_stops(container, tmp_path):
    (tmp_path / "key").write_text("abc")
    folder, environment = container
    environment = {**environment, "TRITON_ADMIN_KEY_FILE": str(tmp_path / "key")}
    ports = choose_ports("127.0.0.1", Ports())
    with (tmp_path / "log").open("w") as log, started((folder, environment), ports, log) as process:
        deadline = time.monotonic() + 120
        while not health_check(ports.http):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        assert [status_of_admin(ports.http, key) for key in ("abc", "wrong")] == [200, 403]
        with InstantIDClient(f"localhost:{ports.grpc}", timeout=60) as client:
            answer = client.generate(encoded(data.astronaut()), "a portrait", num_inference_steps=2, seed=7)
        assert answer.seeds == (7,)
        assert answer.images[0].startswith(b"\x89PNG")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not health_check(ports.http)
    assert not list(Path("/dev/shm").glob(f"triton_instantid_{process.pid}_*"))
