"""Starting, failing, stopping and starting again: no process and no shared memory may stay behind."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import tritonclient.grpc as grpc_client
from onnx import TensorProto, helper

from build_tools.embedded.guard import GuardSpec
from build_tools.embedded.server import EmbeddedServer, EmbeddedServerError, Ports, PreflightError, ServerOptions

CPU = "instance_group [{ kind: KIND_CPU count: 1 }]\n"
ECHO_CONFIG = """
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
"""
ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
"""
ONNX_CONFIG = """
backend: "onnxruntime"
input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]
"""
OWNER = """
import json, signal, sys, time
from pathlib import Path
from build_tools.embedded.guard import GuardSpec
from build_tools.embedded.server import EmbeddedServer, ServerOptions

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
root = Path(sys.argv[1])
options = ServerOptions(root / "repository", root / "run", ready_model="echo", exit_timeout=3)
with EmbeddedServer(options) as server:
    print(json.dumps(server.pid), flush=True)
    while True:
        time.sleep(0.1)
"""


@pytest.fixture
def echo(tmp_path: Path) -> ServerOptions:
    folder = tmp_path / "repository" / "echo" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(ECHO)
    (folder.parent / "config.pbtxt").write_text(ECHO_CONFIG + CPU)
    return ServerOptions(tmp_path / "repository", tmp_path / "run", ready_model="echo", exit_timeout=3)


def add_onnx(options: ServerOptions, config: str) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", [x], [y])
    folder = options.repository / "same" / "1"
    folder.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    (folder.parent / "config.pbtxt").write_text(config)


def changed(options: ServerOptions, **fields: Any) -> ServerOptions:
    return dataclasses.replace(options, **fields)


def eventually(condition: Callable[[], object], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def shared_memory(options: ServerOptions) -> list[str]:
    prefix = json.loads((options.run_dir / "guard.json").read_text())["shm_prefix"]
    return [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


def processes(options: ServerOptions) -> list[psutil.Process]:
    """Server, stubs and guard of this run folder, found by their arguments."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(options.run_dir) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def call(server: EmbeddedServer) -> float:
    with grpc_client.InferenceServerClient(server.grpc_url) as client:
        tensor = grpc_client.InferInput("x", [1], "FP32").set_data_from_numpy(np.array([7], np.float32))
        return float(client.infer("echo", [tensor], client_timeout=10).as_numpy("y")[0])


def test_everything_is_gone_after_the_block(echo: ServerOptions) -> None:
    seen: list[str] = []
    with EmbeddedServer(echo, seen.append) as server:
        assert call(server) == 7
        assert psutil.pid_exists(server.pid)
        assert len(processes(echo)) == 3
        assert shared_memory(echo)
        assert not any(os.stat(f"/dev/shm/{name}").st_mode & 0o077 for name in shared_memory(echo))
    assert not processes(echo)
    assert not shared_memory(echo)
    assert server.pid == 0
    assert seen == ["loaded echo", f"ready at {server.grpc_url}"]


def test_model_that_does_not_fit_its_file_is_named(echo: ServerOptions) -> None:
    add_onnx(echo, ONNX_CONFIG + CPU)
    with pytest.raises(EmbeddedServerError, match=r"same.*input 'x'.*says .*\[3\], the file has .*\[4\]"):
        EmbeddedServer(echo).start()
    assert not processes(echo)
    assert not shared_memory(echo)


def test_gpu_instance_is_refused(echo: ServerOptions) -> None:
    add_onnx(echo, ONNX_CONFIG.replace("[3]", "[4]") + CPU.replace("CPU", "GPU"))
    with pytest.raises(EmbeddedServerError, match=r"same.*(GPU|gpu)"):
        EmbeddedServer(echo).start()


def test_unknown_model_and_unavailable_model_are_named(echo: ServerOptions) -> None:
    with pytest.raises(EmbeddedServerError, match=r"no model 'nobody'; it has echo"):
        EmbeddedServer(changed(echo, ready_model="nobody")).start()
    add_onnx(echo, ONNX_CONFIG + CPU)
    lenient = changed(echo, ready_model="same", extra_args=("--exit-on-error=false",))
    with pytest.raises(EmbeddedServerError, match=r"'same' is UNAVAILABLE: .*input 'x'"):
        EmbeddedServer(lenient).start()


def test_taken_port_and_taken_run_folder_are_refused(echo: ServerOptions) -> None:
    with EmbeddedServer(echo) as server:
        with pytest.raises(EmbeddedServerError, match="another server runs in"):
            EmbeddedServer(echo).start()
        with pytest.raises(PreflightError, match=f"grpc port 127.0.0.1:{server.ports.grpc} cannot be taken"):
            EmbeddedServer(changed(echo, ports=Ports(grpc=server.ports.grpc))).start()
        assert call(server) == 7


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_server_ends_with_the_process_that_started_it(echo: ServerOptions, number: int) -> None:
    arguments = [sys.executable, "-c", OWNER, str(echo.run_dir.parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout
        assert psutil.pid_exists(json.loads(owner.stdout.readline()))
        owner.send_signal(number)
    assert eventually(lambda: not processes(echo))
    assert not shared_memory(echo)


def test_server_ends_with_its_guard(echo: ServerOptions) -> None:
    with EmbeddedServer(echo) as server:
        psutil.Process(server.pid).parent().kill()
        assert eventually(lambda: not processes(echo))
        assert not server.is_running()


def test_what_killed_processes_leave_is_removed_by_the_next_start(echo: ServerOptions) -> None:
    arguments = [sys.executable, "-c", OWNER, str(echo.run_dir.parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout
        server = psutil.Process(json.loads(owner.stdout.readline()))
        for process in (owner, server.parent(), *server.children(), server):
            process.kill()
    assert eventually(lambda: not processes(echo))
    left = [Path("/dev/shm", name) for name in shared_memory(echo)]
    assert left
    with EmbeddedServer(echo):
        assert not any(region.exists() for region in left)


def test_unsupervised_server_stays_down(echo: ServerOptions) -> None:
    with EmbeddedServer(echo) as server:
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == 128 + signal.SIGKILL
        assert not processes(echo)
        assert not shared_memory(echo)


def test_supervised_server_comes_back(echo: ServerOptions) -> None:
    with EmbeddedServer(changed(echo, supervise=True)) as server:
        first = server.pid
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: server.state.starts == 2)
        server.wait_ready()
        assert call(server) == 7
        text = server.log_path.read_text()
    assert "tritonserver ended (exit code -9); starting it again in 1 s" in text
    assert not processes(echo)


def test_a_full_disk_does_not_end_the_supervisor(tmp_path: Path) -> None:
    """With a stand-in for the server that ends by itself; neither log nor state can be written."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = ["sh", "-c", f"echo >>{tmp_path}/starts; sleep 1"]
        spec = GuardSpec(
            command, "/dev/full", "/dev/full/state", "none_", listening.getsockname(), os.getpid(), 1, supervise=True
        )
        spec.save(tmp_path / "spec.json")
        with subprocess.Popen([sys.executable, "-m", "build_tools.embedded.guard", tmp_path / "spec.json"]) as guard:
            assert eventually(lambda: (tmp_path / "starts").exists() and (tmp_path / "starts").read_text() == "\n\n")
            guard.terminate()
            assert guard.wait(10) == 128 + signal.SIGTERM


def test_administration_needs_a_key_where_others_can_call(echo: ServerOptions) -> None:
    with EmbeddedServer(changed(echo, host="0.0.0.0")) as server:
        assert call(server) == 7
        with grpc_client.InferenceServerClient(server.grpc_url) as client:
            with pytest.raises(grpc_client.InferenceServerException, match="UNAVAILABLE"):
                client.get_model_repository_index(client_timeout=10)
            (word,) = [word for word in psutil.Process(server.pid).cmdline() if "grpc-restricted-protocol" in word]
            key = {"triton-grpc-protocol-admin-key": word.rpartition("=")[2]}
            assert client.get_model_repository_index(headers=key, client_timeout=10).models[0].name == "echo"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(f"{server.http_url}/v2/repository/index", b""), timeout=10)
