"""Configurations against ONNX files: what Triton's stock onnxruntime backend accepts and refuses."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from build_tools.embedded.onnx_config import ModelConfigError, check_signature, check_supported, session_options
from build_tools.embedded.onnx_model import OnnxModel

Edit = Callable[[dict[str, Any]], object]


def tensor(name: str, kind: str, dims: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": kind, "dims": dims, **more}


def affine_model(rows: int | str) -> onnx.ModelProto:
    """total = x * scale + shift, [rows,4] FP32 with FP32 [rows,1]; `shift` [1] is an initializer."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [rows, 1])
    shift = helper.make_tensor_value_info("shift", TensorProto.FLOAT, [1])
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, [rows, 4])
    scaled = helper.make_tensor_value_info("scaled", TensorProto.FLOAT, [rows, 4])
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["total"]),
    ]
    constants = [helper.make_tensor("shift", TensorProto.FLOAT, [1], [0.5])]
    graph = helper.make_graph(nodes, "affine", [x, scale, shift], [total, scaled], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


PLAIN = {
    "name": "affine",
    "max_batch_size": 0,
    "input": [tensor("x", "TYPE_FP32", [-1, 4]), tensor("scale", "TYPE_FP32", [-1, 1])],
    "output": [tensor("total", "TYPE_FP32", [-1, 4])],
}
BATCHED = {
    "name": "affine",
    "max_batch_size": 4,
    "input": [tensor("x", "TYPE_FP32", [4]), tensor("scale", "TYPE_FP32", [1])],
    "output": [tensor("total", "TYPE_FP32", [4])],
}


def edited(config: dict[str, Any], edit: Edit) -> dict[str, Any]:
    fresh = copy.deepcopy(config)
    edit(fresh)
    return fresh


def check(config: dict[str, Any], rows: int | str) -> None:
    session = ort.InferenceSession(affine_model(rows).SerializeToString(), providers=["CPUExecutionProvider"])
    check_signature(config, session)


def put(side: str, index: int, **fields: Any) -> Edit:
    return lambda config: config[side][index].update(fields)


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (PLAIN, "n"),
        (BATCHED, "n"),
        (edited(PLAIN, put("input", 0, dims=[7, 4])), "n"),
        (edited(PLAIN, put("input", 0, dims=[28], reshape={"shape": [7, 4]})), "n"),
        (edited(PLAIN, lambda c: c["output"].append(tensor("scaled", "TYPE_FP32", [-1, 4]))), "n"),
        (edited(PLAIN, lambda c: c["input"].append(tensor("shift", "TYPE_FP32", [1], optional=True))), "n"),
    ],
)
def test_fitting_configurations_are_accepted(config: dict[str, Any], rows: int | str) -> None:
    check(config, rows)


REFUSED: list[tuple[dict[str, Any], int | str, str]] = [
    (edited(PLAIN, lambda c: c["input"].pop()), "n", "input 'scale': required by the model"),
    (edited(PLAIN, put("input", 1, optional=True)), "n", "input 'scale': required by the model"),
    (edited(PLAIN, lambda c: c["input"].append(tensor("z", "TYPE_FP32", [1]))), "n", "input 'z': unexpected.*x"),
    (edited(PLAIN, put("output", 0, name="sum")), "n", "output 'sum': unexpected, the model has scaled, total"),
    (
        edited(PLAIN, put("input", 0, data_type="TYPE_FP16")),
        "n",
        "'x': .* says TYPE_FP16, the model has TYPE_FP32",
    ),
    (edited(PLAIN, put("output", 0, data_type="TYPE_INT8")), "n", "'total': .*says TYPE_INT8, .* has TYPE_FP32"),
    (edited(PLAIN, put("input", 0, dims=[-1, 3])), "n", r"'x': .* shape \[-1, 3\], the model has \[-1, 4\]"),
    (edited(PLAIN, put("input", 0, dims=[-1, -1])), "n", r"'x': .* shape \[-1, -1\], the model has \[-1, 4\]"),
    (edited(PLAIN, put("input", 0, dims=[4])), "n", r"'x': .* shape \[4\], the model has \[-1, 4\]"),
    (edited(PLAIN, put("output", 0, dims=[7, 4])), "n", r"'total': .* shape \[7, 4\], the model has \[-1, 4\]"),
    (edited(BATCHED, put("input", 0, dims=[-1, 4])), "n", r"'x': .* \[-1, -1, 4\], with the batch dimension"),
    (BATCHED, 2, r"'x': .* \[-1, 4\], with the batch dimension .*, the model has \[2, 4\]"),
    (
        edited(BATCHED, lambda c: c["input"].append(tensor("shift", "TYPE_FP32", [1], optional=True))),
        "n",
        "optional input 'shift': not supported for models that support batching",
    ),
]


@pytest.mark.parametrize(("config", "rows", "message"), REFUSED)
def test_mismatch_is_refused_by_name(config: dict[str, Any], rows: int | str, message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        check(config, rows)


def parameters(**values: str) -> dict[str, Any]:
    return {"parameters": {name: {"string_value": value} for name, value in values.items()}}


def test_session_options_follow_the_configuration() -> None:
    options = session_options(
        parameters(execution_mode="1", intra_op_thread_count="3", inter_op_thread_count="2", enable_mem_arena="0")
        | {"optimization": {"graph": {"level": -1}}}
    )
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert not options.enable_cpu_mem_arena
    assert options.enable_mem_pattern


def test_session_options_default_to_the_stock_backends() -> None:
    options = session_options({})
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.intra_op_num_threads == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (parameters(execution_mode="2"), "execution_mode must be 0 or 1, got 2"),
        (parameters(intra_op_thread_count="many"), "intra_op_thread_count must be an integer, got 'many'"),
        (parameters(enable_mem_arena="maybe"), "enable_mem_arena must be true, false, 1 or 0, got 'maybe'"),
    ],
)
def test_bad_parameter_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        session_options(config)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (PLAIN, "GPU", "CPU only"),
        ({"sequence_batching": {"x": 1}}, "CPU", "sequence_batching"),
        ({"input": [tensor("x", "TYPE_FP32", [1], allow_ragged_batch=True)]}, "CPU", r"no ragged.*\['x'\]"),
        (
            {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}},
            "CPU",
            "unknown execution accelerator 'openvino'",
        ),
    ],
)
def test_what_only_the_stock_backend_has_is_refused(config: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        check_supported(config, kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(affine_model("n"), tmp_path / "model.onnx")
    return tmp_path


def feed(rows: int, scale: float) -> dict[str, np.ndarray]:
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    return {"x": x, "scale": np.full((rows, 1), scale, np.float32)}


@pytest.mark.parametrize("config", [PLAIN, BATCHED])
def test_each_request_gets_its_own_rows(folder: Path, config: dict[str, Any]) -> None:
    feeds = [feed(1, 2.0), feed(2, 3.0), feed(0, 1.0)]
    outcomes = OnnxModel.load(config, folder, "CPU").run(feeds)
    for given, outcome in zip(feeds, outcomes, strict=True):
        assert isinstance(outcome, dict)
        np.testing.assert_array_equal(outcome["total"], given["x"] * given["scale"] + 0.5)


@pytest.mark.parametrize("config", [PLAIN, BATCHED])
def test_error_stays_with_its_request(folder: Path, config: dict[str, Any]) -> None:
    wrong = feed(2, 1.0) | {"scale": np.ones((3, 1), np.float32)}
    good, bad = OnnxModel.load(config, folder, "CPU").run([feed(1, 2.0), wrong])
    assert isinstance(good, dict)
    assert isinstance(bad, Exception)


def test_optional_input_overrides_the_initializer(folder: Path) -> None:
    config = edited(PLAIN, lambda c: c["input"].append(tensor("shift", "TYPE_FP32", [1], optional=True)))
    given = feed(1, 2.0)
    with_shift, without = OnnxModel.load(config, folder, "CPU").run(
        [given | {"shift": np.array([9], np.float32)}, given]
    )
    assert isinstance(with_shift, dict)
    assert isinstance(without, dict)
    np.testing.assert_array_equal(with_shift["total"] - without["total"], np.full((1, 4), 8.5, np.float32))


def test_scalars_travel_as_one_element(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negative", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "model.onnx",
    )
    config = {
        "name": "neg",
        "input": [tensor("x", "TYPE_FP32", [1])],
        "output": [tensor("y", "TYPE_FP32", [1, 1])],
    }
    (outcome,) = OnnxModel.load(config, tmp_path, "CPU").run([{"x": np.array([3], np.float32)}])
    assert isinstance(outcome, dict)
    np.testing.assert_array_equal(outcome["y"], [[-3.0]])
    with pytest.raises(ModelConfigError, match=r"'neg'.*input 'x'"):
        OnnxModel.load(edited(config, put("input", 0, dims=[2])), tmp_path, "CPU")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"'affine': no ONNX file at .*other\.onnx"):
        OnnxModel.load(PLAIN | {"default_model_filename": "other.onnx"}, tmp_path, "CPU")
