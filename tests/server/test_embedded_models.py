"""Models on the embedded server: Python in both answer modes, and ONNX files through our onnxruntime backend."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
SENDER = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().copy()
            threading.Thread(target=self.answer, args=(request.get_response_sender(), x)).start()
        return None

    def answer(self, sender, x):
        about = np.array([b"sender"], dtype=object)
        response = pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1), pb_utils.Tensor("about", about)])
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
ADD_ONE_CONFIG = """
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, 4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1, 4] }, { name: "about" data_type: TYPE_STRING dims: [1] }]
"""
KEEP_CONFIG = """
backend: "onnxruntime"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, 4] }]
output [{ name: "kept" data_type: TYPE_FP32 dims: [-1, 4] }]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
parameters { key: "execution_mode" value: { string_value: "0" } }
optimization { graph: { level: 1 } }
"""
LOOKUP_CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input [{ name: "row" data_type: TYPE_INT64 dims: [1] }]
output [{ name: "value" data_type: TYPE_FP32 dims: [1] }]
dynamic_batching { max_queue_delay_microseconds: 200000 }
"""
TEXT_CONFIG = """
backend: "onnxruntime"
default_model_filename: "words.onnx"
input [{ name: "words" data_type: TYPE_STRING dims: [-1] }]
output [{ name: "same" data_type: TYPE_STRING dims: [-1] }]
"""
TABLE = np.array([10.0, 20.0, 30.0], np.float32)


def _graph(nodes: list, inputs: list, outputs: list, constants: tuple = ()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def keep_positive() -> onnx.ModelProto:
    """Rows of x whose first number is above 0: [n,4] to [0..n,4]."""
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["first"], axis=1),
        helper.make_node("Greater", ["first", "bound"], ["mask"]),
        helper.make_node("Compress", ["x", "mask"], ["kept"], axis=0),
    ]
    constants = (helper.make_tensor("zero", TensorProto.INT64, [], [0]), helper.make_tensor("bound", 1, [], [0.0]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    return _graph(nodes, [x], [helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["m", 4])], constants)


def look_up() -> onnx.ModelProto:
    """value = TABLE[row]; onnxruntime refuses a row outside the table."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [3], TABLE.tolist())
    row = helper.make_tensor_value_info("row", TensorProto.INT64, ["batch", 1])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch", 1])
    return _graph([helper.make_node("Gather", ["table", "row"], ["value"], axis=0)], [row], [value], (table,))


def same_words() -> onnx.ModelProto:
    words = helper.make_tensor_value_info("words", TensorProto.STRING, ["n"])
    same = helper.make_tensor_value_info("same", TensorProto.STRING, ["n"])
    return _graph([helper.make_node("Identity", ["words"], ["same"])], [words], [same])


def put_model(repository: Path, name: str, config: str, model: str | onnx.ModelProto, file: str = "model") -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(config + CPU)
    if isinstance(model, str):
        (folder / f"{file}.py").write_text(model)
    else:
        onnx.save(model, folder / f"{file}.onnx")


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    root = tmp_path_factory.mktemp("embedded")
    repository = root / "repository"
    put_model(repository, "add_one", ADD_ONE_CONFIG, ADD_ONE)
    put_model(repository, "add_one_sender", ADD_ONE_CONFIG, SENDER)
    put_model(repository, "keep_positive", KEEP_CONFIG, keep_positive())
    put_model(repository, "look_up", LOOKUP_CONFIG, look_up())
    put_model(repository, "same_words", TEXT_CONFIG, same_words(), "words")
    options = ServerOptions(repository, root / "run", ready_model="look_up", exit_timeout=5)
    with EmbeddedServer(options) as running:
        yield running


@pytest.fixture(scope="module")
def tiny_client(tiny_server: EmbeddedServer) -> Iterator[grpc_client.InferenceServerClient]:
    with grpc_client.InferenceServerClient(tiny_server.grpc_url) as connected:
        yield connected


def infer(tiny_client: grpc_client.InferenceServerClient, model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    kinds = {"f": "FP32", "i": "INT64", "O": "BYTES"}
    sent = []
    for name, array in inputs.items():
        tensor = grpc_client.InferInput(name, list(array.shape), kinds[array.dtype.kind])
        sent.append(tensor.set_data_from_numpy(array))
    result = tiny_client.infer(model, sent, client_timeout=30)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


@pytest.mark.parametrize("model", ["add_one", "add_one_sender"])
def test_python_model_answers_in_both_modes(tiny_client: grpc_client.InferenceServerClient, model: str) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(infer(tiny_client, model, x=x)["y"], x + 1)


def test_stub_runs_in_this_environment(tiny_client: grpc_client.InferenceServerClient) -> None:
    about = json.loads(infer(tiny_client, "add_one", x=np.zeros((1, 4), np.float32))["about"][0])
    assert about["prefix"] == sys.prefix
    assert about["numpy"] == np.__version__


def test_onnx_answers_as_onnxruntime_does(tiny_client: grpc_client.InferenceServerClient) -> None:
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    oracle = ort.InferenceSession(keep_positive().SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(infer(tiny_client, "keep_positive", x=x)["kept"], oracle.run(None, {"x": x})[0])


@pytest.mark.parametrize("rows", [0, 3])
def test_onnx_output_without_rows_keeps_its_shape(tiny_client: grpc_client.InferenceServerClient, rows: int) -> None:
    kept = infer(tiny_client, "keep_positive", x=np.full((rows, 4), -1, np.float32))["kept"]
    assert kept.shape == (0, 4)
    assert kept.dtype == np.float32


def test_onnx_text_passes_unchanged(tiny_client: grpc_client.InferenceServerClient) -> None:
    words = np.array(["größer".encode(), b"", b"two words"], dtype=object)
    assert infer(tiny_client, "same_words", words=words)["same"].tolist() == words.tolist()


def test_only_the_faulty_request_of_a_batch_fails(tiny_client: grpc_client.InferenceServerClient) -> None:
    rows = [0, 99, 2, 1]
    with ThreadPoolExecutor(len(rows)) as pool:
        calls = [pool.submit(infer, tiny_client, "look_up", row=np.array([[row]])) for row in rows]
    for row, call in zip(rows, calls, strict=True):
        if row < len(TABLE):
            np.testing.assert_array_equal(call.result()["value"], [[TABLE[row]]])
        else:
            with pytest.raises(grpc_client.InferenceServerException, match="out of data bounds"):
                call.result()
    statistics = tiny_client.get_inference_statistics("look_up").model_stats[0]
    assert max(batch.batch_size for batch in statistics.batch_stats) > 1, "the requests never shared a batch"


def test_requests_of_several_rows_are_cut_apart_again(tiny_client: grpc_client.InferenceServerClient) -> None:
    asked = [np.array([[0], [1]]), np.array([[2]]), np.array([[1], [1], [0]])]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = [*pool.map(lambda row: infer(tiny_client, "look_up", row=row)["value"], asked)]
    for row, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer, TABLE[row])


def test_urls_answer(tiny_server: EmbeddedServer) -> None:
    assert urlopen(f"{tiny_server.http_url}/v2/health/ready").status == 200
    assert b'nv_inference_count{model="add_one"' in urlopen(tiny_server.metrics_url).read()
