"""Configurations against ONNX files: what the embedded onnxruntime backend accepts, refuses and answers."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from build_tools.embedded.onnx_model import CUDA, ModelConfigError, OnnxModel

CONFIG: dict[str, Any] = {
    "name": "affine",
    "max_batch_size": 0,
    "input": [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]},
        {"name": "scale", "data_type": "TYPE_FP32", "dims": [-1, 1]},
    ],
    "output": [{"name": "total", "data_type": "TYPE_FP32", "dims": [-1, 4]}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """total = x * scale + 0.5, [n,4] FP32 with FP32 [n,1]; the product is an output too."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["n", 1])
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n", 4])
    scaled = helper.make_tensor_value_info("scaled", TensorProto.FLOAT, ["n", 4])
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["total"]),
    ]
    constants = [helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])]
    graph = helper.make_graph(nodes, "affine", [x, scale], [total, scaled], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path


def edited(edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    fresh = copy.deepcopy(CONFIG)
    edit(fresh)
    return fresh


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (edited(lambda c: c["input"].pop()), r"has inputs \['x'\], the file \['scale', 'x'\]"),
        (edited(lambda c: c["input"][0].update(name="y")), r"has inputs \['scale', 'y'\], the file"),
        (edited(lambda c: c["output"][0].update(name="sum")), r"has outputs \['sum'\], the file \['scaled', 'total'\]"),
        (edited(lambda c: c["input"][0].update(data_type="TYPE_INT64")), r"input 'x': .*int64.*the file has .*float"),
        (edited(lambda c: c["input"][0].update(dims=[-1, 3])), r"input 'x': .*\[-1, 3\].*, the file has .*\[-1, 4\]"),
        (edited(lambda c: c["output"][0].update(dims=[4])), r"output 'total': .*\[4\].*, the file has .*\[-1, 4\]"),
        (edited(lambda c: c.update(max_batch_size=8)), "max_batch_size must be 0"),
        (edited(lambda c: c.update(default_model_filename="other.onnx")), r"no ONNX file at .*other\.onnx"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=f"unable to load model 'affine': .*{message}"):
        OnnxModel(config, folder, None)


@pytest.mark.parametrize("rows", [0, 3])
def test_a_request_is_answered_as_the_graph_says(folder: Path, rows: int) -> None:
    x, scale = np.ones((rows, 4), np.float32), np.full((rows, 1), 3, np.float32)
    answer = OnnxModel(CONFIG, folder, None).run({"x": x, "scale": scale})
    assert list(answer) == ["total"]
    np.testing.assert_array_equal(answer["total"], np.full((rows, 4), 3.5, np.float32))


def test_threads_and_algorithm_search_follow_the_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is not here: what onnxruntime is asked for is seen, not what it would do."""
    asked = []

    class Session(ort.InferenceSession):
        def __init__(self, path: Path, options: ort.SessionOptions, providers: list) -> None:
            asked.extend([options.intra_op_num_threads, providers[0]])
            super().__init__(path, options, ["CPUExecutionProvider"])

        def get_providers(self) -> list:
            return [CUDA]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    values = {"cudnn_conv_algo_search": "1", "intra_op_thread_count": "2"}
    parameters = {name: {"string_value": value} for name, value in values.items()}
    OnnxModel({**CONFIG, "parameters": parameters}, folder, 3)
    assert asked == [2, (CUDA, {"device_id": 3, "cudnn_conv_algo_search": "HEURISTIC"})]


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this onnxruntime is the one for GPUs")
def test_a_gpu_is_never_replaced_by_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ModelConfigError, match=f"'affine': KIND_GPU, but this onnxruntime has no {CUDA}: .*extra `gpu`"
    ):
        OnnxModel(CONFIG, folder, 0)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    with pytest.raises(ModelConfigError, match=f"'affine': onnxruntime could not load its {CUDA}"):
        OnnxModel(CONFIG, folder, 0)
