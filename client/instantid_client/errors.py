"""What can go wrong for a caller.

InstantIDError
 ├ InvalidArgument    the request is wrong; `field` names what, the text says the bound
 ├ Overloaded         the server cannot take it now: queue full, starting or stopping; another try later may pass
 ├ QueueTimeout       it waited in the queue for longer than allowed
 ├ DeadlineExceeded   the caller's own time was up
 ├ Cancelled          cancelled before it was done
 ├ Unreachable        no connection to the server
 ├ ServerError        the server failed; its log has the reason under the request id
 └ AnswerMismatch     the answer belongs to another request; it was thrown away
"""

import re
from typing import Any

import grpc

PREFIX = re.compile(r"^(in ensemble '[^']*', )?(\[request id: [^\]]*\] )?")
FIELD = re.compile(r"^([a-z_]+(?:\[\d+\])?(?:, [a-z_]+)?): ")


class InstantIDError(Exception):
    """Base of all errors of this client."""


class InvalidArgument(InstantIDError):
    """The request is outside the contract. `field` is the input's name, or empty if the server named none."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = FIELD.match(message)
        self.field = found.group(1) if found else ""


class Overloaded(InstantIDError):
    """The server cannot take the request now."""


class QueueTimeout(Overloaded):
    """The request waited in the server's queue for longer than allowed."""


class DeadlineExceeded(InstantIDError):
    """The time that the caller gave was up; the server stops the work at its next step."""


class Cancelled(InstantIDError):
    """The request was cancelled."""


class Unreachable(InstantIDError):
    """There is no connection to the server."""


class ServerError(InstantIDError):
    """The server failed at this request."""


class AnswerMismatch(InstantIDError):
    """The answer carries another request's id; it must not be used."""


BY_STATUS: dict[Any, type[InstantIDError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def from_status(status: Any, details: str) -> InstantIDError:
    """The error for a gRPC status; Triton's own prefixes are taken off its text."""
    message = PREFIX.sub("", details)
    if status == grpc.StatusCode.UNAVAILABLE:
        return _unavailable(message)
    if status == grpc.StatusCode.CANCELLED and message.startswith("deadline_ms"):
        return DeadlineExceeded(message)
    return BY_STATUS.get(status, ServerError)(message)


def _unavailable(message: str) -> InstantIDError:
    """Triton answers a full queue, a queue timeout and a stop alike; so does gRPC a lost connection."""
    if "timeout expired" in message:
        return QueueTimeout(message)
    if any(sign in message for sign in ("queue", "Server", "stopping", "not ready")):
        return Overloaded(message)
    return Unreachable(message)
