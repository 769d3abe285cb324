"""The command behind `make serve`, with a stand-in for the project's models."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc_client
from onnx import TensorProto, helper

CPU = "instance_group [{ kind: KIND_CPU count: 1 }]\n"
COMMAND = "import typer; from build_tools.embedded.serve import serve_command; typer.run(serve_command)"
INSTANTID_CONFIG = """
backend: "python"
output [{ name: "weights" data_type: TYPE_STRING dims: [1] }]
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
"""
INSTANTID = """
import os, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(float(pb_utils.get_input_tensor_by_name(requests[0], "x").as_numpy()[0]))
        value = np.array([os.environ["INSTANTID_WEIGHTS"].encode()], dtype=object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("weights", value)]) for request in requests]
"""
FACES_CONFIG = """
backend: "onnxruntime"
input [{ name: "x" data_type: TYPE_FP32 dims: [2] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [2] }]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with `models` (only the profile `cpu` may load) and `weights`."""
    for name, config in (("instantid", INSTANTID_CONFIG), ("face_analysis", FACES_CONFIG)):
        configs = tmp_path / "models" / name / "configs"
        configs.mkdir(parents=True)
        (configs.parent / "config.pbtxt").write_text(config + CPU.replace("CPU", "GPU"))
        (configs / "cpu.pbtxt").write_text(config + CPU)
    (tmp_path / "models" / "instantid" / "1").mkdir()
    (tmp_path / "models" / "instantid" / "1" / "model.py").write_text(INSTANTID)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negative", [x], [y])
    (tmp_path / "weights").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "weights" / "face_analysis.onnx")
    return tmp_path


def three_free_ports() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        try:
            for port in (first + 1, first + 2):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            continue
        return first


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "--repository", "models", "--weights", "weights", *arguments],
        cwd=place,
        env={**os.environ, "COLUMNS": "200"},
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_until(command: subprocess.Popen[str], word: str) -> Iterator[str]:
    assert command.stderr
    for line in command.stderr:
        yield line
        if word in line:
            return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_runs_until_it_is_told_to_stop(place: Path, number: int) -> None:
    first = three_free_ports()
    with start(place, "--first-port", str(first)) as command:
        printed = "".join(lines_until(command, "Ctrl-C"))
        assert f'instantid generate PHOTO --prompt "a portrait" --url 127.0.0.1:{first + 1} -o out.png' in printed
        with grpc_client.InferenceServerClient(f"127.0.0.1:{first + 1}") as client:
            x = grpc_client.InferInput("x", [1], "FP32").set_data_from_numpy(np.zeros(1, np.float32))
            answer = client.infer("instantid", [x], client_timeout=10).as_numpy("weights")
            assert answer[0].decode() == str(place / "weights")
            x = grpc_client.InferInput("x", [2], "FP32").set_data_from_numpy(np.array([1, -2], np.float32))
            assert client.infer("face_analysis", [x], client_timeout=10).as_numpy("y").tolist() == [-1, 2]
        command.send_signal(number)
        assert command.wait(60) == 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", first + 1))


def test_a_second_signal_waits_for_no_request(place: Path) -> None:
    first = three_free_ports()
    with start(place, "--first-port", str(first)) as command:
        list(lines_until(command, "Ctrl-C"))
        with grpc_client.InferenceServerClient(f"127.0.0.1:{first + 1}") as client:
            x = grpc_client.InferInput("x", [1], "FP32").set_data_from_numpy(np.array([60], np.float32))
            client.async_infer("instantid", [x], lambda result, error: None)
            time.sleep(2)
            command.send_signal(signal.SIGTERM)
            time.sleep(2)
            assert command.poll() is None
            command.send_signal(signal.SIGTERM)
            assert command.wait(5) == 0


def test_serve_says_what_is_missing(place: Path) -> None:
    (place / "weights" / "face_analysis.onnx").unlink()
    with start(place) as command:
        assert command.stderr
        assert "no face graph at weights/face_analysis.onnx" in command.stderr.read()
    assert command.returncode == 1
