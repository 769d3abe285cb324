"""Every error that the server, Triton, gRPC, Envoy and Dynamo can send, and the class that a caller gets.

Texts of Triton 2.51, Envoy 1.40, grpcio 1.85 and Dynamo 1.6.1 as they were received from the running programs.
"""

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
    PermissionDenied,
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


STOPPING = "Server is stopping, scheduler for model has stopped accepting new inference requests"
TRITON = [
    ("UNAVAILABLE", PREFIX + "Exceeds maximum queue size", Overloaded),
    ("UNAVAILABLE", "[request id: abc] Exceeds maximum queue size", Overloaded),
    ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", Overloaded),
    ("UNAVAILABLE", PREFIX + "Request timeout expired", QueueTimeout),
    ("UNAVAILABLE", "Request timeout expired", QueueTimeout),
    ("UNAVAILABLE", STOPPING, Overloaded),
    ("UNAVAILABLE", "in ensemble 'instantid', " + STOPPING, Overloaded),
    ("UNAVAILABLE", "Server exiting", Overloaded),
    ("NOT_FOUND", "Request for unknown model: 'instantid' has no available versions", Overloaded),
    ("UNAVAILABLE", "Server not ready", Overloaded),
    ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'", PermissionDenied),
    ("NOT_FOUND", "Request for unknown model: 'instantid' is not found", NotFound),
    (
        "NOT_FOUND",
        "in ensemble 'instantid', Request for unknown model: 'denoiser' has no available versions",
        Overloaded,
    ),
    ("INVALID_ARGUMENT", "[request id: abc] expected 2 inputs but got 1 inputs for model 'instantid'", InvalidArgument),
    ("INVALID_ARGUMENT", PREFIX + "expected 3 inputs but got 2 inputs for model 'denoiser'. Got input(s)", ServerError),
    ("INTERNAL", PREFIX + "Stub process 'denoiser_0_0' is not healthy.", ServerError),
    ("INTERNAL", PREFIX + "Failed to increase the shared memory pool size", ServerError),
    ("UNIMPLEMENTED", "", Unimplemented),
    ("UNIMPLEMENTED", PREFIX + "ModelInfer RPC doesn't support models with decoupled transaction policy", ServerError),
    ("CANCELLED", PREFIX + "cancelled by the caller with 3 of 30 steps left", Cancelled),
    ("CANCELLED", PREFIX + "deadline_ms: the deadline passed with 3 of 30 steps left", DeadlineExceeded),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
    ("UNKNOWN", "", ServerError),
    ("ALREADY_EXISTS", "", ServerError),
]
ENVOY = {"date": "Sat, 28 Nov 2026 11:09:59 GMT", "server": "envoy"}
PASSED = {**ENVOY, "x-envoy-upstream-service-time": "1"}
RESET = "upstream connect error or disconnect/reset before headers. reset reason: "
GATEWAY = [
    ("UNIMPLEMENTED", "", ENVOY, NoRoute),
    ("UNIMPLEMENTED", "", PASSED, Unimplemented),
    ("UNAVAILABLE", RESET + "remote connection failure", ENVOY, Unreachable),
    ("UNAVAILABLE", RESET + "connection termination", ENVOY, Unreachable),
    ("UNAVAILABLE", RESET + "overflow", {**ENVOY, "x-envoy-overloaded": "true"}, Overloaded),
    ("UNAVAILABLE", "no healthy upstream", ENVOY, Unreachable),
    ("UNAVAILABLE", "", ENVOY, Unreachable),
    ("UNAVAILABLE", "upstream request timeout", ENVOY, DeadlineExceeded),
    ("UNAVAILABLE", "local_rate_limited", ENVOY, ResourceExhausted),
    ("RESOURCE_EXHAUSTED", "local_rate_limited", {**ENVOY, "retry-after": "7"}, ResourceExhausted),
    ("UNAUTHENTICATED", "Client authentication failed.", ENVOY, Unauthenticated),
    ("PERMISSION_DENIED", "RBAC: access denied", ENVOY, PermissionDenied),
    ("PERMISSION_DENIED", "only acme", ENVOY, PermissionDenied),
    ("DEADLINE_EXCEEDED", "downstream duration timeout", ENVOY, DeadlineExceeded),
    ("UNKNOWN", "fault filter abort", ENVOY, ServerError),
    ("UNAVAILABLE", PREFIX + "Exceeds maximum queue size", PASSED, Overloaded),
    ("UNAVAILABLE", "local_rate_limited", PASSED, Unreachable),
    ("UNAVAILABLE", "Received http2 header with status: 502", {}, Unreachable),
    ("UNIMPLEMENTED", "Received http2 header with status: 404", {}, NoRoute),
    ("UNAUTHENTICATED", "Received http2 header with status: 401", {}, Unauthenticated),
    ("PERMISSION_DENIED", "Received http2 header with status: 403", {}, PermissionDenied),
]
FOLD = "Failed to fold completions stream: "
DYNAMO = [
    ("INTERNAL", FOLD + "InvalidRequest: width: 100; must be a multiple of 64", InvalidArgument),
    ("INTERNAL", FOLD + 'InvalidRequest: {"message":"width: 100; must","code":400}', InvalidArgument),
    ("INTERNAL", FOLD + "Cancelled: deadline_ms: the deadline passed with 3 of 30 steps left", DeadlineExceeded),
    ("INTERNAL", FOLD + "Cancelled: gone", Cancelled),
    ("INTERNAL", FOLD + "Unavailable: tenant: 'acme' has 3 rows in work", Overloaded),
    ("INTERNAL", FOLD + "Unauthenticated: x", Unauthenticated),
    ("INTERNAL", FOLD + "PermissionDenied: x", PermissionDenied),
    ("INTERNAL", FOLD + "NotFound: x", NotFound),
    ("INTERNAL", FOLD + "RateLimited: x", ResourceExhausted),
    ("INTERNAL", FOLD + "DeadlineExceeded: x", DeadlineExceeded),
    ("INTERNAL", FOLD + "PayloadTooLarge: x", InvalidArgument),
    ("INTERNAL", FOLD + "Internal: Unavailable: Cancelled: InvalidRequest: x", ServerError),
    ("INTERNAL", "Failed to generate tensor response stream: Unavailable: x", Overloaded),
    ("INTERNAL", PREFIX + FOLD + "Unavailable: x", ServerError),
    ("NOT_FOUND", "Model 'instantid' not found", NotFound),
    ("RESOURCE_EXHAUSTED", "all workers are busy", ResourceExhausted),
    ("UNAVAILABLE", "Service temporarily unavailable", Unreachable),
]
CONNECTION = [
    "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:9: Connection refused",
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9: Connection refused",
    "errors resolving no-such-host.invalid:8001: [field:hostname lookup error:address lookup failed]",
    "DNS resolution failed for no-such-host.invalid:8001: C-ares status is not ARES_SUCCESS",
]
LOST = [
    "Stream removed (Socket closed)",
    "Socket closed",
    "recvmsg:Connection reset by peer",
    "Cancelling all calls",
    "",
]
CASES = [(status, text, {}, kind) for status, text, kind in [*TRITON, *DYNAMO]] + GATEWAY
CASES += [("UNAVAILABLE", text, {}, Unreachable) for text in [*CONNECTION, *LOST]]


@pytest.mark.parametrize(("status", "text", "metadata", "kind"), CASES, ids=[f"{c[0]}: {c[1][:60]}" for c in CASES])
def test_by_status_and_origin(status, text, metadata, kind):
    error = error_for(Reply(status, text, metadata), "abc")
    assert type(error) is kind
    assert error.code == status
    assert error.request_id == "abc"
    assert str(error)


def test_whether_it_was_sent():
    def sent(text, metadata):
        return error_for(Reply("UNAVAILABLE", text, metadata)).sent

    assert not any(sent(text, {}) for text in CONNECTION)
    assert all(sent(text, {}) for text in LOST)
    assert not sent("no healthy upstream", ENVOY)
    assert not sent(RESET + "remote connection failure", ENVOY)
    assert sent(RESET + "connection termination", ENVOY)


@pytest.mark.parametrize("status", [code.name for code in STATUS if code.name != "OK"])
def test_words_of_the_server_s_texts_decide_nothing(status):
    """The same class whatever the text holds, once it comes from a model."""
    words = [
        HOSTILE,
        STOPPING + "!",
        "local_rate_limited",
        FOLD + "Cancelled: x",
        "tenant: 'queue Server' has 3 rows",
        "x",
    ]
    kinds = {type(error_for(Reply(status, PREFIX + text), "abc")) for text in words}
    assert len(kinds) == 1


@pytest.mark.parametrize(
    ("text", "field"),
    [("photo[1]: empty", "photo[1]"), ("width, height: 9x9; must", "width, height"), ("tenant: ''; must", "tenant"),
     ("odd", ""), ("note: something", ""), ("photo", "")],
)  # fmt: skip
def test_the_field_is_named(text, field):
    assert error_for(Reply("INVALID_ARGUMENT", PREFIX + text), "abc").field == field


@pytest.mark.parametrize(
    ("metadata", "seconds"),
    [({}, None), ({"retry-after": "7"}, 7.0), ({"grpc-retry-pushback-ms": "1500"}, 1.5),
     ({"retry-after": "Sat, 28 Nov 2026 11:09:59 GMT"}, None), ({"retry-after": "-1"}, None)],
)  # fmt: skip
def test_the_hint_of_a_gateway(metadata, seconds):
    assert error_for(Reply("RESOURCE_EXHAUSTED", "x", metadata)).retry_after == seconds


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
    lost = pickle.loads(pickle.dumps(error_for(Reply("UNAVAILABLE", CONNECTION[0]))))
    assert not lost.sent


def test_a_wrong_value_carries_no_status():
    with pytest.raises(InvalidArgument) as caught:
        FakeClient().generate(b"photo", "x", seed=-1)
    assert (caught.value.code, caught.value.field) == ("", "seed")
