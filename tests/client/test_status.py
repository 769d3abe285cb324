"""The class of error for every status and text that the server, Triton, gRPC, Envoy and Dynamo can send.

Texts of Triton 2.51, Envoy 1.40, grpcio 1.85 and Dynamo 1.6.1 as they were received from the running programs.
"""

import pytest

from instantid_client import (
    Cancelled,
    DeadlineExceeded,
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
)
from instantid_client._status import Reply, error_for
from tests.client.conftest import PREFIX, STATUS

from .test_errors import HOSTILE

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
