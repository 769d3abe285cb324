"""Clients without a server, for the tests of a service that calls one.

Everything but the network is real: values are checked, requests built, answers read, errors raised.

    def handler(request: FakeRequest) -> bytes:
        if request.values["prompt"] == "a busy day":
            raise Overloaded("queue full", retry_after=2)
        return MY_PICTURE

    client = FakeClient(handler)
    assert client.generate(photo, "a portrait").images == (MY_PICTURE,)
    assert client.requests[0].values["prompt"] == "a portrait"
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instantid_client import contract
from instantid_client._compat import Unpack
from instantid_client._values import OPTIONS, Tensors
from instantid_client.aio import AsyncInstantIDClient
from instantid_client.client import DEFAULT_URL, InstantIDClient
from instantid_client.results import ServerHealth
from instantid_client.settings import ClientOptions
from instantid_client.transport import Call, HealthCall

PICTURES = {
    "png": base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
    ),
    "jpeg": base64.b64decode(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
        "Z2hnPk1xeXBkeFxlZ2P/wAALCAABAAEBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUF"
        "BAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVW"
        "V1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi"
        "4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/ACv/2Q=="
    ),
    "webp": base64.b64decode("UklGRiQAAABXRUJQVlA4IBgAAABQAQCdASoBAAEAAsBMJaQABHQAAORAAAA="),
}
"""One grey pixel in each format, to answer with."""
FACE = {
    "box": [40.0, 30.0, 90.0, 100.0],
    "landmarks": [[52.0, 55.0], [78.0, 55.0], [65.0, 70.0], [55.0, 85.0], [75.0, 85.0]],
    "score": 0.9,
    "detection_size": 640,
    "faces_seen": 1,
    "photo_index": 0,
}


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """A request as a server would see it: `values` by the contract's names, photos as bytes."""

    address: str
    request_id: str
    values: Mapping[str, Any]
    parameters: Mapping[str, str | int]
    timeout: float
    metadata: Mapping[str, str]


Handler = Callable[[FakeRequest], bytes | Sequence[bytes]]
"""Gives the pictures of a request, one or as many as it asks for, or raises one of `instantid_client.errors`."""


def paint(request: FakeRequest) -> Sequence[bytes]:
    """The handler of a fake that was given none: grey pixels in the format that is asked for."""
    return [PICTURES[request.values.get("output_format", "png")]] * request.values.get("num_images_per_prompt", 1)


class FakeTransport:
    """Answers by `handler` and keeps what was asked in `requests`; its health is good."""

    def __init__(self, handler: Handler = paint) -> None:
        self.handler = handler
        self.requests: list[FakeRequest] = []

    def infer(self, address: str, call: Call) -> Tensors:
        values = {name: _value(name, array) for name, array in call.inputs.items()}
        request = FakeRequest(address, call.request_id, values, call.parameters, call.timeout, call.metadata)
        self.requests.append(request)
        painted = self.handler(request)
        images = [painted] if isinstance(painted, bytes) else list(painted)
        return _answer(request, images)

    def health(self, address: str, call: HealthCall) -> ServerHealth:
        return ServerHealth(address, live=True, ready=True, model_ready=True, triton_version="fake")

    def close(self) -> None:
        pass


class AsyncFakeTransport:
    """`FakeTransport` for asyncio."""

    def __init__(self, handler: Handler = paint) -> None:
        self.fake = FakeTransport(handler)

    async def infer(self, address: str, call: Call) -> Tensors:
        return self.fake.infer(address, call)

    async def health(self, address: str, call: HealthCall) -> ServerHealth:
        return self.fake.health(address, call)

    async def close(self) -> None:
        pass


class FakeClient(InstantIDClient):
    """An `InstantIDClient` whose server is `handler`; `requests` has what was sent."""

    def __init__(
        self, handler: Handler = paint, url: str | Sequence[str] = DEFAULT_URL, **options: Unpack[ClientOptions]
    ) -> None:
        fake = FakeTransport(handler)
        super().__init__(url, transport=fake, **options)
        self.requests = fake.requests


class AsyncFakeClient(AsyncInstantIDClient):
    """An `AsyncInstantIDClient` whose server is `handler`; `requests` has what was sent."""

    def __init__(
        self, handler: Handler = paint, url: str | Sequence[str] = DEFAULT_URL, **options: Unpack[ClientOptions]
    ) -> None:
        transport = AsyncFakeTransport(handler)
        super().__init__(url, transport=transport, **options)
        self.requests = transport.fake.requests


def _value(name: str, array: Any) -> Any:
    option = OPTIONS[name]
    if isinstance(option, contract.Images):
        return tuple(array)
    return array[0].decode() if option.datatype == "BYTES" else array[0].item()


def _answer(request: FakeRequest, images: Sequence[bytes]) -> Tensors:
    first = request.values.get("seed", 0)
    report = json.dumps({"fake": True}).encode()
    return {
        contract.IMAGE.name: _bytes(images),
        contract.SEEDS.name: np.arange(first, first + len(images), dtype=np.int64),
        contract.FACE.name: _bytes([json.dumps({**FACE, "photos": [FACE]}).encode()]),
        contract.REPORT.name: _bytes([report] * len(images)),
        contract.REQUEST_ID.name: _bytes([request.request_id.encode()]),
    }


def _bytes(values: Sequence[bytes]) -> Any:
    return np.array([*values, None], object)[:-1]
