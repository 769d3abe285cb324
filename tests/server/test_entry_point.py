"""The container's entry point on the embedded server, in the image's folder layout and compose's confinement."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from skimage import data

from build_tools.embedded import layout
from build_tools.embedded.options import Ports, ServerOptions
from build_tools.embedded.server import choose_ports
from instantid_client import InstantIDClient
from tests.server.conftest import encoded
from tests.unit.test_container import BIN, DOCKERFILE, ROOT, run


@pytest.fixture(scope="module")
def container(weights, tmp_path_factory):
    """A folder laid out like /opt/instantid, and the environment of a process in it; `tritonserver` is a real one."""
    folder = tmp_path_factory.mktemp("opt")
    for name in run("git", "ls-files", "model_repository", cwd=ROOT).stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    shutil.copy(ROOT / "deploy/docker/entrypoint.sh", folder / "bin/serve")
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


def words_of_the_entry_point(container, **environment):
    """What it gives to tritonserver, read from a stand-in that prints its arguments."""
    folder, inherited = container
    stand_in = folder / "echo/tritonserver"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{inherited['PATH']}"
    result = run(folder / "bin/serve", env={**inherited, "PATH": path, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def flags_of_the_entry_point(container, **environment):
    words = (word.removeprefix("--").partition("=") for word in words_of_the_entry_point(container, **environment))
    return {name: value for name, _, value in words}


def test_triton_s_own_trace_goes_to_the_collector_that_is_set(container, tmp_path):
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}
    ours = words_of_the_entry_point(container, **collector)
    embedded = layout.command_line(ServerOptions(tmp_path, tmp_path, environment=collector), Ports(), tmp_path, "p_")
    traced = [[word for word in words if word.startswith("--trace-config=")] for words in (ours, embedded)]
    assert traced[0] == traced[1]
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in traced[0]
    assert not [word for word in words_of_the_entry_point(container) if "trace-config" in word]


def test_without_weights_it_says_so(container, tmp_path):
    folder, environment = container
    result = run(folder / "bin/serve", env={**environment, "INSTANTID_WEIGHTS": str(tmp_path)})
    assert result.returncode == 1
    assert result.stderr == f"no weights in {tmp_path}: {tmp_path}/face_analysis.onnx is missing\n"


def test_flags_are_triton_s_and_agree_with_the_embedded_server(container, tmp_path):
    ours = flags_of_the_entry_point(container)
    embedded = layout.command_line(ServerOptions(tmp_path, tmp_path), Ports(), tmp_path, "prefix_")[1:]
    theirs = {name: value for name, _, value in (word.removeprefix("--").partition("=") for word in embedded)}
    places = {"model-repository", "backend-config", "exit-timeout-secs", "http-address", "metrics-address"}
    both = set(ours) & set(theirs) - places
    forwarded = {"grpc-header-forward-pattern", "http-header-forward-pattern"}
    assert both == {"model-control-mode", "disable-auto-complete-config", "log-format", "log-verbose"} | forwarded
    assert {name: ours[name] for name in both} == {name: theirs[name] for name in both}
    assert set(theirs) - set(ours) == {
        *("backend-directory", "model-config-name", "grpc-address", "grpc-port", "http-port", "metrics-port"),
    }
    closed = layout.command_line(ServerOptions(tmp_path, tmp_path), Ports(), tmp_path, "prefix_", "abc")
    apis = ours["http-restricted-api"].partition(":")[0]
    assert {f"--http-restricted-api={apis}:admin-key=abc", f"--grpc-restricted-protocol={apis}:admin-key=abc"} <= {
        *closed
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
        TRITON_HTTP_ADDRESS="0.0.0.0",
    )
    assert set_by_operator["http-address"] == set_by_operator["metrics-address"] == "0.0.0.0"
    assert flags_of_the_entry_point(container)["http-address"] == "127.0.0.1"
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


def test_a_second_signal_waits_for_no_request(container):
    folder, environment = container
    stand_in = folder / "deaf/tritonserver"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\ntrap 'echo draining' TERM\necho up\nwhile :; do sleep 0.1; done\n")
    stand_in.chmod(0o755)
    environment = {**environment, "PATH": f"{stand_in.parent}:{environment['PATH']}"}
    with subprocess.Popen(folder / "bin/serve", env=environment, stdout=subprocess.PIPE, text=True) as entry:
        for said in ("up\n", "draining\n"):
            assert entry.stdout.readline() == said
            entry.send_signal(signal.SIGTERM)
        assert entry.wait(10) == 128 + signal.SIGKILL


CONTAINED = (
    "mount --make-rprivate / && mount --bind /tmp /tmp && mount -t tmpfs tmpfs /dev/shm && mount -o remount,bind,ro /"
    ' && exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"'
)
"""Compose's conditions: process 1, a root file system that is read-only but for /tmp and /dev/shm, no capabilities."""


@contextmanager
def started(container, ports, log):
    """The entry point's process; contained where this machine lets us."""
    folder, environment = container
    where = [f"--{name}-port={getattr(ports, name)}" for name in ("grpc", "http", "metrics")]
    command = [folder / "bin/serve", "--model-config-name=cpu", *where]
    unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", CONTAINED, "sh"]
    contained = run(*unshare, "true").returncode == 0
    launched = subprocess.Popen([*unshare, *command] if contained else command, env=environment, stdout=log, stderr=log)
    try:
        while contained and not psutil.Process(launched.pid).children():
            time.sleep(0.05)
        yield psutil.Process(launched.pid).children()[0] if contained else launched, launched
    finally:
        if launched.poll() is None:
            os.kill(psutil.Process(launched.pid).children()[0].pid if contained else launched.pid, signal.SIGTERM)
            launched.wait(60)


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
    with (tmp_path / "log").open("w") as log, started((folder, environment), ports, log) as (process, launched):
        deadline = time.monotonic() + 120
        while not health_check(ports.http):
            assert launched.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        if process is not launched:
            assert "CapEff:\t0000000000000000" in Path(f"/proc/{process.pid}/status").read_text()
        assert [status_of_admin(ports.http, key) for key in ("abc", "wrong")] == [200, 403]
        with InstantIDClient(f"localhost:{ports.grpc}", timeout=60) as client:
            answer = client.generate(encoded(data.astronaut()), "a portrait", num_inference_steps=2, seed=7)
        assert answer.seeds == (7,)
        assert answer.images[0].startswith(b"\x89PNG")
        process.send_signal(signal.SIGTERM)
        assert launched.wait(60) == 0
    assert not health_check(ports.http)
