"""Which error a gRPC status means: by the status, and by who wrote its text.

What a text says never decides, for it may quote the caller: only whole texts do that Triton, Envoy or gRPC itself
writes the same way each time, in a place where only they can have written them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from instantid_client._values import FIELDS
from instantid_client.errors import (
    Cancelled,
    DeadlineExceeded,
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
)

Kind = type[InstantIDError]

BY_STATUS: Mapping[str, Kind] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "NOT_FOUND": NotFound,
    "UNIMPLEMENTED": Unimplemented,
    "UNAVAILABLE": Unreachable,
}
"""All others are ServerError."""
TRITON_UNAVAILABLE: Mapping[str, Kind] = {
    "Request timeout expired": QueueTimeout,
    "Exceeds maximum queue size": Overloaded,
    "Server is stopping, scheduler for model has stopped accepting new inference requests": Overloaded,
    "Server exiting": Overloaded,
    "Server not ready": Overloaded,
}
TRITON_STOPPED = re.compile(r"Request for unknown model: '[^']*' has no available versions")
"""NOT_FOUND, from a server that has stopped the model already but not yet closed its port (seen on 2.51.0)."""
TRITON_HALF_ANSWER = re.compile(r"expected \d+ inputs but got \d+ inputs for model ")
"""INVALID_ARGUMENT, inside an ensemble: the stage before was frozen for seconds and gave half an answer (2.51.0)."""
TRITON_RESTRICTED = re.compile(r"This protocol is restricted, expecting header '[^']*'")
ENVOY_UNAVAILABLE: Mapping[str, Kind] = {
    "local_rate_limited": ResourceExhausted,
    "upstream request timeout": DeadlineExceeded,
}
ENVOY_RESET = "upstream connect error or disconnect/reset before headers. reset reason: "
ENVOY_NOT_SENT = {
    "no healthy upstream",
    *(f"{ENVOY_RESET}{why}" for why in ("remote connection failure", "local connection failure", "connection timeout")),
}
GRPC_NOT_SENT = (
    "connections to all backends failing",
    "failed to connect to all addresses",
    "errors resolving ",
    "DNS resolution failed",
)
"""How the texts begin that gRPC itself writes where there is no connection."""
GRPC_HTTP_404 = "Received http2 header with status: 404"

ENSEMBLE = re.compile(r"in ensemble '[^']*', ")
REQUEST_ID = re.compile(r"^\[request id: [^\]]*\] ")
NAME = r"[a-z_]+(?:\[\d+\])?"
FIELD = re.compile(rf"({NAME}(?:, {NAME})*): ")
DYNAMO = re.compile(r"Failed to (?:fold completions|generate tensor response) stream: (\w+): ", re.ASCII)
DYNAMO_CLASSES: Mapping[str, Kind] = {
    "InvalidRequest": InvalidArgument,
    "InvalidArgument": InvalidArgument,
    "PayloadTooLarge": InvalidArgument,
    "UnsupportedMedia": InvalidArgument,
    "Unauthenticated": Unauthenticated,
    "PermissionDenied": PermissionDenied,
    "NotFound": NotFound,
    "RateLimited": ResourceExhausted,
    "CapacityExhausted": Overloaded,
    "ResourceExhausted": Overloaded,
    "WorkerOverloaded": Overloaded,
    "Cancelled": Cancelled,
    "Unavailable": Overloaded,
    "WorkerUnavailable": Overloaded,
    "DeadlineExceeded": DeadlineExceeded,
    "NotImplemented": Unimplemented,
}
"""NVIDIA Dynamo's KServe frontend sends all of these as INTERNAL (lib/runtime/src/error.rs, 1.6.1)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came in place of an answer: the status' name, its text and the trailing metadata."""

    status: str
    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def error_for(reply: Reply, request_id: str = "", address: str = "") -> InstantIDError:
    kind, text = _kind_and_text(reply, request_id)
    found = FIELD.match(text)
    named = found.group(1) if found and _is_ours(found.group(1)) else ""
    if kind is Cancelled and named == "deadline_ms":
        kind = DeadlineExceeded
    text = text or f"{reply.status} without a text"
    message = f"{address}: {text}" if issubclass(kind, (Unreachable, Unimplemented)) and address else text
    error = kind(message, request_id=request_id, code=reply.status, field=named, retry_after=_hint(reply.metadata))
    if isinstance(error, Unreachable):
        error.sent = not (text in ENVOY_NOT_SENT or text.startswith(GRPC_NOT_SENT))
    return error


def _kind_and_text(reply: Reply, request_id: str) -> tuple[Kind, str]:
    """The class, and the text without the frames that others put around it."""
    kind, text = BY_STATUS.get(reply.status, ServerError), reply.text
    if reply.status == "INTERNAL" and (framed := DYNAMO.match(text)):
        kind, text = DYNAMO_CLASSES.get(framed.group(1), ServerError), text[framed.end() :]
    bare = ENSEMBLE.sub("", text, count=1) if ENSEMBLE.match(text) else text
    from_model = bare != text or REQUEST_ID.match(text) is not None
    own = f"[request id: {request_id}] "
    text = bare.removeprefix(own) if bare.startswith(own) else REQUEST_ID.sub("", bare, count=1)
    if reply.status == "UNAVAILABLE":
        return _unavailable(reply, text, from_model), text
    if bare != reply.text and TRITON_HALF_ANSWER.match(text):
        return ServerError, text
    if kind is NotFound and TRITON_STOPPED.fullmatch(text):
        return Overloaded, text
    if from_model and kind in (NotFound, Unimplemented):
        kind = ServerError
    if kind is Unimplemented and (_is_proxys_own(reply) or text.startswith(GRPC_HTTP_404)):
        kind = NoRoute
    return kind, text


def _unavailable(reply: Reply, text: str, from_model: bool) -> Kind:
    """Triton answers a full queue, a queue timeout and a stop alike; so do gateways, and gRPC a lost connection."""
    if from_model or text in TRITON_UNAVAILABLE:
        return TRITON_UNAVAILABLE.get(text, Overloaded)
    if TRITON_RESTRICTED.fullmatch(text):
        return PermissionDenied
    if "x-envoy-overloaded" in reply.metadata:
        return Overloaded
    return ENVOY_UNAVAILABLE.get(text, Unreachable) if _is_proxys_own(reply) else Unreachable


def _is_proxys_own(reply: Reply) -> bool:
    """Envoy names itself in each reply, and the time that the server took in those that came from one."""
    return "server" in reply.metadata and "x-envoy-upstream-service-time" not in reply.metadata


def _is_ours(names: str) -> bool:
    return all(name.partition("[")[0] in FIELDS for name in names.split(", "))


def _hint(metadata: Mapping[str, str]) -> float | None:
    """Seconds that a gateway asks to wait: `retry-after` (RFC 9110, seconds only) or gRPC's own pushback (gRFC A6)."""
    for name, unit in (("retry-after", 1.0), ("grpc-retry-pushback-ms", 1e-3)):
        if metadata.get(name, "").isdecimal():
            return float(metadata[name]) * unit
    return None
