"""Errors: every place in the source that makes one, over the wire, from proxies, and pickled."""

import ast
import inspect
import pickle
import socket
import struct
import threading
from pathlib import Path

import pytest

import instantid.errors as service
from instantid_client import (
    Cancelled,
    DeadlineExceeded,
    FakeClient,
    InstantIDError,
    InvalidArgument,
    NoRoute,
    NotFound,
    Overloaded,
    QueueTimeout,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unimplemented,
    Unreachable,
    errors,
)
from instantid_client._status import Reply, error_for
from tests.client.conftest import PREFIX, STATUS

SOURCE = Path(__file__).parents[2] / "src" / "instantid"
GRPC = {
    "INVALID_ARG": "INVALID_ARGUMENT",
    "UNAVAILABLE": "UNAVAILABLE",
    "CANCELLED": "CANCELLED",
    "INTERNAL": "INTERNAL",
}
"""TritonError codes as they arrive, inside an ensemble too."""
HOSTILE = "Request timeout expired; queue, Server is stopping, not ready, no healthy upstream, failed to connect to all"
EXPECTED = {
    service.InvalidArgument: InvalidArgument,
    service.NoUsableFace: InvalidArgument,
    service.Overloaded: Overloaded,
    service.Cancelled: Cancelled,
    service.EngineFailure: ServerError,
    service.DeviceFailure: ServerError,
}


def raised():
    """Every place in src/ that makes an error: where, its class, and its text with hostile values filled in."""
    kinds = {name: kind for name, kind in vars(service).items() if inspect.isclass(kind)}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if name in kinds and issubclass(kinds[name], service.ServiceError):
                texts = [rendered(argument) for argument in node.args]
                yield f"{path.name}:{node.lineno}", kinds[name], str(kinds[name](*texts))


def rendered(node):
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(rendered(part) for part in node.values)
    return HOSTILE


RAISED = list(raised())


@pytest.mark.parametrize(("kind", "text"), [case[1:] for case in RAISED], ids=[case[0] for case in RAISED])
def test_what_the_source_raises(kind, text):
    error = error_for(Reply(GRPC[kind.status], PREFIX + text), "abc")
    wanted = DeadlineExceeded if text.startswith("deadline_ms: ") and kind is service.Cancelled else EXPECTED[kind]
    assert type(error) is wanted
    assert str(error) == text


def test_the_walk_sees_all_classes_and_many_places():
    assert {kind for _, kind, _ in RAISED} == set(EXPECTED)
    assert len(RAISED) > 25


def test_every_class_of_the_source_has_its_class_here():
    kinds = [
        kind for kind in vars(service).values() if inspect.isclass(kind) and issubclass(kind, service.ServiceError)
    ]
    assert set(kinds) == {service.ServiceError, *EXPECTED}


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        ((STATUS.UNAVAILABLE, PREFIX + "tenant: 'a timeout expired' has 3 rows in work"), Overloaded),
        ((STATUS.RESOURCE_EXHAUSTED, "slow down", (("retry-after", "3"),)), ResourceExhausted),
        ((STATUS.UNAUTHENTICATED, "no key"), Unauthenticated),
        ((STATUS.INVALID_ARGUMENT, PREFIX + "width: 100; must be a multiple of 64"), InvalidArgument),
        ((STATUS.CANCELLED, PREFIX + "cancelled by the caller with 3 of 30 steps left"), Cancelled),
        ((STATUS.INTERNAL, PREFIX + "the picture could not be made"), ServerError),
        ((STATUS.NOT_FOUND, "Request for unknown model"), NotFound),
    ],
)
def test_errors_over_the_wire(call, url, recorder, fail, kind):
    recorder.fail = fail
    with pytest.raises(kind) as caught:
        call.generate(url, request_id="abc")
    error = caught.value
    assert type(error) is kind
    assert str(error) == fail[1].removeprefix(PREFIX)
    assert (error.request_id, error.code) == ("abc", fail[0].name)
    assert error.retry_after == (3.0 if fail[2:] else None)
    assert error.field == {InvalidArgument: "width", Overloaded: "tenant"}.get(kind, "")
    assert error.__cause__ is not None


def test_nobody_there(call):
    for method, arguments in (("generate", (b"photo", "x")), ("health", ())):
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9: ") as caught:
            call("127.0.0.1:9", method, *arguments, client={"timeout": 5})
        assert not caught.value.sent


def http2(status):
    """A server that answers each gRPC call as a proxy for web pages does: an HTTP status without gRPC's own."""
    indexed = {200: 0x88, 404: 0x8D}
    listener = socket.create_server(("127.0.0.1", 0))

    def frame(kind, flags, stream, payload=b""):
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.sendall(frame(4, 0, 0) + frame(4, 1, 0))
            received = b""
            while b"ModelInfer" not in received and (data := connection.recv(65536)):
                received += data
            connection.sendall(frame(1, 5, 1, bytes([indexed[status]])))
            while connection.recv(65536):
                pass

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_proxy_s_404(call):
    with pytest.raises(NoRoute):
        call.generate(http2(404), timeout=5)


def test_the_tree_is_as_documented():
    assert issubclass(QueueTimeout, Overloaded)
    assert issubclass(ResourceExhausted, Overloaded)
    assert issubclass(NoRoute, Unimplemented)
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, InstantIDError)]
    for kind in kinds:
        assert kind.__name__ in errors.__doc__


def test_errors_survive_pickling():
    """As task queues and process pools send them."""
    error = error_for(Reply("UNAVAILABLE", PREFIX + "tenant: x", {"retry-after": "2"}), "abc")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.field, copy.retry_after, copy.request_id) == (
        Overloaded, "tenant: x", "tenant", 2.0, "abc",
    )  # fmt: skip
    lost = pickle.loads(pickle.dumps(error_for(Reply("UNAVAILABLE", "failed to connect to all addresses"))))
    assert not lost.sent


def test_a_wrong_value_carries_no_status():
    with pytest.raises(InvalidArgument) as caught:
        FakeClient().generate(b"photo", "x", seed=-1)
    assert (caught.value.code, caught.value.field) == ("", "seed")
