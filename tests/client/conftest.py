"""A gRPC server in this process that records what arrives, and one way to call it for both clients."""

import asyncio
import inspect
import json
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from instantid_client import AsyncInstantIDClient, InstantIDClient
from instantid_client.fake import PICTURES

FACE = {"box": [1, 2, 3, 4], "landmarks": [[0, 1]] * 5, "score": 0.9, "detection_size": 640, "faces_seen": 1,
        "photo_index": 0}  # fmt: skip
PREFIX = "in ensemble 'instantid', [request id: abc] "
STATUS = grpc.StatusCode


def framed(*items):
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


class Recorder(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every request with as many pictures as it asks for.

    `fail` is (status, text) or (status, text, trailing metadata); `answer_id` an id; `left_out` an output's name.
    """

    def __init__(self):
        self.requests, self.fail, self.answer_id, self.delay, self.metadata = [], None, None, 0.0, {}
        self.left_out, self.fail_first, self.cancelled, self.lock = "", 0, threading.Event(), threading.Lock()
        self.before_answer = lambda: None

    def ModelInfer(self, request, context):  # noqa: N802
        with self.lock:
            self.requests.append(request)
            number = len(self.requests)
        self.metadata = dict(context.invocation_metadata())
        context.add_callback(lambda: self.cancelled.set() if context.code() is None else None)
        time.sleep(self.delay)
        if self.fail and (not self.fail_first or number <= self.fail_first):
            status, text, *trailing = self.fail
            context.set_trailing_metadata(tuple(*trailing))
            context.abort(status, text)
        self.before_answer()
        return self.answer(request)

    def answer(self, request):
        given = inputs_of(request)
        n, first = int(given.get("num_images_per_prompt", [1])[0]), int(given.get("seed", [5])[0])
        outputs = {
            "image": ("BYTES", [n], framed(*[f"picture {i}".encode() for i in range(n)])),
            "seeds": ("INT64", [n], np.arange(first, first + n).tobytes()),
            "face": ("BYTES", [1], framed(json.dumps({**FACE, "photos": [FACE]}).encode())),
            "report": ("BYTES", [n], framed(*[json.dumps({"i": i}).encode() for i in range(n)])),
            "request_id": ("BYTES", [1], framed((self.answer_id or request.id).encode())),
        }
        outputs.pop(self.left_out, None)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        for name, (datatype, shape, raw) in outputs.items():
            answer.outputs.add(name=name, datatype=datatype, shape=shape)
            answer.raw_output_contents.append(raw)
        return answer

    def ServerLive(self, request, context):  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request, context):  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name == "instantid")

    def ServerMetadata(self, request, context):  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def inputs(self):
        return inputs_of(self.requests[-1])


def inputs_of(request):
    """A request's inputs, decoded by hand."""
    found = {}
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


def serve(recorder, credentials=None, threads=4):
    """The running server and its port."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(threads), options=unlimited)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(recorder, server)
    if credentials:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def url(recorder):
    server, port = serve(recorder)
    yield f"127.0.0.1:{port}"
    server.stop(None)


class Caller:
    """Makes a client of one kind, calls one method, closes it; the same for both kinds."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, url, method, *arguments, client=None, **options):
        if self.kind is InstantIDClient:
            with InstantIDClient(url, **(client or {})) as made:
                found = getattr(made, method)(*arguments, **options)
                return list(found) if inspect.isgenerator(found) else found
        return asyncio.run(self._awaited(url, method, arguments, client or {}, options))

    async def _awaited(self, url, method, arguments, client, options):
        async with AsyncInstantIDClient(url, **client) as made:
            found = getattr(made, method)(*arguments, **options)
            if inspect.isasyncgen(found):
                return [item async for item in found]
            return await found

    def generate(self, url, *arguments, client=None, **options):
        return self(
            url, "generate", *(arguments or (b"photo", "x")), client={"timeout": 20, **(client or {})}, **options
        )


@pytest.fixture(params=[InstantIDClient, AsyncInstantIDClient], ids=["sync", "asyncio"])
def call(request):
    return Caller(request.param)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"photo")
    return path


@pytest.fixture
def real_pictures(recorder):
    """The recorder's pictures are pictures, in the format that is asked for."""
    plain = recorder.answer

    def answer(request):
        made = plain(request)
        (kind,) = inputs_of(request).get("output_format", [b"png"])
        made.raw_output_contents[0] = framed(*[PICTURES[kind.decode()]] * made.outputs[0].shape[0])
        return made

    recorder.answer = answer


@pytest.fixture
def folder(tmp_path):
    """A folder with a photo, `ok.png`."""
    (tmp_path / "ok.png").write_bytes(b"photo")
    return tmp_path
