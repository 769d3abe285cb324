"""The client's wire behaviour, against an in-process gRPC server that records what arrives."""

import json
import subprocess
import sys
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from typer.testing import CliRunner

from instantid_client import (
    AnswerMismatch,
    Cancelled,
    DeadlineExceeded,
    InstantIDClient,
    InvalidArgument,
    Overloaded,
    QueueTimeout,
    Routing,
    ServerError,
    Unreachable,
)
from instantid_client.__main__ import app

FACE = {"box": [1, 2, 3, 4], "landmarks": [[0, 1]] * 5, "score": 0.9, "detection_size": 640, "faces_seen": 1,
        "photo_index": 0}  # fmt: skip
REPORT = json.dumps({**FACE, "photos": [FACE]}).encode()


def framed(*items):
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


class Recorder(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every request with as many pictures as it asks for; `fail` is (status, text), `answer_id` an id."""

    def __init__(self):
        self.requests, self.fail, self.answer_id, self.delay, self.metadata = [], None, None, 0.0, {}

    def ModelInfer(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        time.sleep(self.delay)
        if self.fail:
            context.abort(*self.fail)
        given = self.inputs()
        n = int(given.get("num_images_per_prompt", [1])[0])
        outputs = {
            "image": ("BYTES", [n], framed(*[f"picture {i}".encode() for i in range(n)])),
            "seeds": ("INT64", [n], np.arange(5, 5 + n).tobytes()),
            "face": ("BYTES", [1], framed(REPORT)),
            "request_id": ("BYTES", [1], framed((self.answer_id or request.id).encode())),
        }
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        for name, (datatype, shape, raw) in outputs.items():
            answer.outputs.add(name=name, datatype=datatype, shape=shape)
            answer.raw_output_contents.append(raw)
        return answer

    def inputs(self):
        """The last request's inputs, decoded by hand."""
        request, found = self.requests[-1], {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            if tensor.datatype == "BYTES":
                values = []
                while raw:
                    size = int.from_bytes(raw[:4], "little")
                    values.append(raw[4 : 4 + size])
                    raw = raw[4 + size :]
            else:
                kind = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}[tensor.datatype]
                values = np.frombuffer(raw, kind).tolist()
            assert list(tensor.shape) == [len(values)]
            found[tensor.name] = values
        return found


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def url(recorder):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(recorder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def client(url):
    with InstantIDClient(url, timeout=20, metadata={"x-key": "secret"}) as connected:
        yield connected


def test_only_what_the_caller_sets_is_sent(client, recorder):
    client.generate(b"photo", "a portrait")
    assert recorder.inputs() == {"photo": [b"photo"], "prompt": [b"a portrait"]}
    client.generate([b"one", b"two"], "ü", seed=7, guidance_scale=2.5, pose_photo=b"pose", scheduler="ddim", width=512)
    assert recorder.inputs() == {
        "photo": [b"one", b"two"], "prompt": ["ü".encode()], "seed": [7], "guidance_scale": [2.5],
        "pose_photo": [b"pose"], "scheduler": [b"ddim"], "width": [512],
    }  # fmt: skip


def test_photos_can_be_paths(client, recorder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"A")
    client.generate([tmp_path / "a.png", str(tmp_path / "a.png"), b"B"], "x")
    assert recorder.inputs()["photo"] == [b"A", b"A", b"B"]


def test_the_answer_is_typed(client):
    result = client.generate(b"photo", "x", num_images_per_prompt=2, request_id="mine")
    assert result.images == (b"picture 0", b"picture 1")
    assert result.seeds == (5, 6)
    assert result.request_id == "mine"
    assert result.face.box == (1, 2, 3, 4)
    assert result.face.photos[0].detection_size == 640
    assert result.seconds > 0


def test_routing_and_deadline_travel_with_the_request(url, recorder):
    with InstantIDClient(url, timeout=20, metadata={"x-key": "secret"}) as client:
        client.generate(b"photo", "x", timeout=1.5, routing=Routing("acme", 1))
    parameters = {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in recorder.requests[-1].parameters.items()}
    assert parameters == {"deadline_ms": 1500, "tenant": "acme", "priority_level": 1, "priority": 1}
    assert recorder.metadata["x-key"] == "secret"


def test_every_request_has_its_own_id(client, recorder):
    client.generate(b"photo", "x")
    client.generate(b"photo", "x")
    first, second = (request.id for request in recorder.requests)
    assert first != second
    assert len(first) == 32


def test_another_request_s_answer_is_thrown_away(client, recorder):
    recorder.answer_id = "other"
    with pytest.raises(AnswerMismatch):
        client.generate(b"photo", "x")


STATUS = grpc.StatusCode
PREFIX = "in ensemble 'instantid', [request id: abc] "
ERRORS = [
    (STATUS.INVALID_ARGUMENT, PREFIX + "width: 100; must be a multiple of 64", InvalidArgument),
    (STATUS.UNAVAILABLE, PREFIX + "Exceeds maximum queue size", Overloaded),
    (STATUS.UNAVAILABLE, PREFIX + "Request timeout expired", QueueTimeout),
    (STATUS.UNAVAILABLE, "Server is stopping, scheduler for model has stopped", Overloaded),
    (STATUS.CANCELLED, PREFIX + "deadline_ms: the deadline passed with 3 of 30 steps left", DeadlineExceeded),
    (STATUS.CANCELLED, PREFIX + "cancelled by the caller with 3 of 30 steps left", Cancelled),
    (STATUS.INTERNAL, PREFIX + "the picture could not be made", ServerError),
    (STATUS.NOT_FOUND, "Request for unknown model", ServerError),
]


@pytest.mark.parametrize(("status", "text", "kind"), ERRORS)
def test_errors_by_status(client, recorder, status, text, kind):
    recorder.fail = (status, text)
    with pytest.raises(kind) as caught:
        client.generate(b"photo", "x")
    assert type(caught.value) is kind
    assert str(caught.value) == text.removeprefix(PREFIX)


def test_invalid_argument_names_its_field(client, recorder):
    for text, field in (
        ("photo[1]: empty", "photo[1]"),
        ("width, height: 9x9; must", "width, height"),
        ("odd", ""),
    ):
        recorder.fail = (STATUS.INVALID_ARGUMENT, PREFIX + text)
        with pytest.raises(InvalidArgument) as caught:
            client.generate(b"photo", "x")
        assert caught.value.field == field


def test_the_deadline_ends_the_call(client, recorder):
    recorder.delay = 2.0
    start = time.perf_counter()
    with pytest.raises(DeadlineExceeded):
        client.generate(b"photo", "x", timeout=0.2)
    assert time.perf_counter() - start < 1.5


def test_nobody_there():
    with InstantIDClient("127.0.0.1:9", timeout=5) as client, pytest.raises(Unreachable):
        client.generate(b"photo", "x")


def test_unknown_options_and_fractions_are_refused(client):
    with pytest.raises(TypeError, match="unknown option 'steps'"):
        client.generate(b"photo", "x", steps=3)
    with pytest.raises(TypeError, match=r"seed: 1.5 is not a whole number"):
        client.generate(b"photo", "x", seed=1.5)


def test_the_client_needs_no_heavy_package():
    heavy = "torch", "cv2", "PIL", "diffusers", "transformers"
    code = f"import sys, instantid_client.__main__; sys.exit(any(name in sys.modules for name in {heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"photo")
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_generate(url, recorder, photo, tmp_path):
    out = tmp_path / "out.webp"
    options = ["--num-inference-steps", 8, "--ip-adapter-scale", 0.5, "--header", "x-a=b", "--tenant", "acme"]
    done = run("generate", photo, photo, "--prompt", "x", "-o", out, "--url", url, "--json", *options)
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == b"picture 0"
    assert recorder.inputs()["photo"] == [b"photo", b"photo"]
    assert recorder.inputs()["output_format"] == [b"webp"]
    assert recorder.inputs()["num_inference_steps"] == [8]
    assert recorder.metadata["x-a"] == "b"
    answer = json.loads(done.stdout)
    assert answer["seeds"] == [5]
    assert answer["face"]["score"] == 0.9


def test_command_generate_writes_several_and_overwrites_only_when_told(url, photo, tmp_path):
    command = [
        "generate",
        photo,
        "--prompt",
        "x",
        "-o",
        tmp_path / "o.png",
        "--url",
        url,
        "--num-images-per-prompt",
        2,
    ]
    assert run(*command).exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("o*")) == ["o_0.png", "o_1.png"]
    assert run(*command).exit_code == 2
    assert run(*command, "--force").exit_code == 0


@pytest.mark.parametrize(("status", "code"), [(STATUS.INVALID_ARGUMENT, 2), (STATUS.INTERNAL, 1)])
def test_command_errors_are_one_line_and_an_exit_code(url, recorder, photo, tmp_path, status, code):
    recorder.fail = (status, PREFIX + "width: 100; must be a multiple of 64")
    done = run("generate", photo, "--prompt", "x", "-o", tmp_path / "result.png", "--url", url)
    assert done.exit_code == code
    assert "instantid: width: 100; must be a multiple of 64" in done.stderr
    assert "Traceback" not in done.output
    assert not list(tmp_path.glob("*result*"))


def test_command_batch_goes_on_after_errors_and_resumes(url, recorder, photo, tmp_path):
    lines = [
        {"photo": "photo.png", "prompt": "a", "output": "a.png", "seed": 1},
        {"photo": ["photo.png", "missing.png"], "prompt": "b", "output": "b.png"},
        {"photo": "photo.png", "prompt": "c", "output": "c.png"},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    done = run("batch", tmp_path / "jobs.jsonl", "--url", url)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.exit_code == 1
    assert [answer.get("error") for answer in answers] == [None, "FileNotFoundError", None]
    assert (tmp_path / "a.png").read_bytes() == b"picture 0"
    sent = len(recorder.requests)
    (tmp_path / "missing.png").write_bytes(b"here now")
    done = run("batch", tmp_path / "jobs.jsonl", "--url", url)
    assert done.exit_code == 0, done.output
    assert len(recorder.requests) == sent + 1


def test_command_batch_names_the_faulty_line(url, tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"photo": "a", "prompt": "b", "output": "c"}\n{"photo": "a"}')
    done = run("batch", tmp_path / "jobs.jsonl", "--url", url)
    assert done.exit_code == 2
    assert "line 2: prompt is missing" in done.stderr
