"""Models on the embedded server: Python, and an ONNX file through our onnxruntime backend."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpc_client
from onnx import TensorProto, helper

from build_tools.embedded.server import EmbeddedServer, ServerOptions

CPU = "instance_group [{ kind: KIND_CPU count: 1 }]\n"
ADD_ONE = """
import json
import sys
import instantid, instantid_client, build_tools
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            seen = {"prefix": sys.prefix, "numpy": np.__version__, "package": build_tools.__file__}
            about = np.array([json.dumps(seen).encode()], dtype=object)
            tensors = [pb_utils.Tensor("y", x + 1), pb_utils.Tensor("about", about)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
"""
ADD_ONE_CONFIG = """
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, 4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1, 4] }, { name: "about" data_type: TYPE_STRING dims: [1] }]
"""
KEEP_CONFIG = """
backend: "onnxruntime"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, 4] }, { name: "scale" data_type: TYPE_FP32 dims: [-1, 1] }]
output [{ name: "kept" data_type: TYPE_FP32 dims: [-1, 4] }]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
"""


def keep_positive() -> onnx.ModelProto:
    """Rows of x * scale whose first number is above 0: [n,4] and [n,1] to [0..n,4]."""
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Gather", ["scaled", "zero"], ["first"], axis=1),
        helper.make_node("Greater", ["first", "bound"], ["mask"]),
        helper.make_node("Compress", ["scaled", "mask"], ["kept"], axis=0),
    ]
    constants = (helper.make_tensor("zero", TensorProto.INT64, [], [0]), helper.make_tensor("bound", 1, [], [0.0]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["n", 1])
    kept = helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["m", 4])
    graph = helper.make_graph(nodes, "test", [x, scale], [kept], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def put_model(repository: Path, name: str, config: str, model: str | onnx.ModelProto) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(config + CPU)
    if isinstance(model, str):
        (folder / "model.py").write_text(model)
    else:
        onnx.save(model, folder / "model.onnx")


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    root = tmp_path_factory.mktemp("embedded")
    repository = root / "repository"
    put_model(repository, "add_one", ADD_ONE_CONFIG, ADD_ONE)
    put_model(repository, "keep_positive", KEEP_CONFIG, keep_positive())
    options = ServerOptions(repository, root / "run", ready_model="keep_positive", exit_timeout=5)
    with EmbeddedServer(options) as running:
        yield running


@pytest.fixture(scope="module")
def tiny_client(tiny_server: EmbeddedServer) -> Iterator[grpc_client.InferenceServerClient]:
    with grpc_client.InferenceServerClient(tiny_server.grpc_url) as connected:
        yield connected


def infer(tiny_client: grpc_client.InferenceServerClient, model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    sent = [
        grpc_client.InferInput(name, list(array.shape), "FP32").set_data_from_numpy(array)
        for name, array in inputs.items()
    ]
    result = tiny_client.infer(model, sent, client_timeout=30)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def test_stub_runs_in_this_environment(tiny_client: grpc_client.InferenceServerClient) -> None:
    about = json.loads(infer(tiny_client, "add_one", x=np.zeros((1, 4), np.float32))["about"][0])
    assert about["prefix"] == sys.prefix
    assert about["numpy"] == np.__version__


def test_onnx_answers_as_onnxruntime_does(tiny_client: grpc_client.InferenceServerClient) -> None:
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    scale = np.full((7, 1), 0.5, np.float32)
    oracle = ort.InferenceSession(keep_positive().SerializeToString(), providers=["CPUExecutionProvider"])
    kept = infer(tiny_client, "keep_positive", x=x, scale=scale)["kept"]
    np.testing.assert_array_equal(kept, oracle.run(None, {"x": x, "scale": scale})[0])


@pytest.mark.parametrize("rows", [0, 3])
def test_onnx_output_without_rows_keeps_its_shape(tiny_client: grpc_client.InferenceServerClient, rows: int) -> None:
    x, scale = np.full((rows, 4), -1, np.float32), np.ones((rows, 1), np.float32)
    kept = infer(tiny_client, "keep_positive", x=x, scale=scale)["kept"]
    assert kept.shape == (0, 4)
    assert kept.dtype == np.float32


def test_a_request_that_onnxruntime_refuses_is_answered_with_its_reason(
    tiny_client: grpc_client.InferenceServerClient,
) -> None:
    with pytest.raises(grpc_client.InferenceServerException, match=r"onnx runtime error: .*Mul node"):
        infer(tiny_client, "keep_positive", x=np.zeros((2, 4), np.float32), scale=np.zeros((3, 1), np.float32))


def test_urls_answer(tiny_server: EmbeddedServer) -> None:
    assert urlopen(f"{tiny_server.http_url}/v2/health/ready").status == 200
    assert b'nv_inference_count{model="add_one"' in urlopen(tiny_server.metrics_url).read()
