"""What can go wrong for a caller.

InstantIDError              carries `request_id`, `code`, `field`, `retry_after`
 ├ InvalidArgument          the request is wrong; `field` names what, the text says value and bound
 ├ Overloaded               the server cannot take it now: queue, tenant's share or memory full, starting or stopping
 │  ├ QueueTimeout          it waited in the server's queue for longer than allowed
 │  └ ResourceExhausted     a gateway's rate limit or quota is used up
 ├ DeadlineExceeded         the time for the call was up: the caller's own, or a gateway's
 ├ Cancelled                cancelled before it was done
 ├ Unreachable              no connection to a server; `sent` says whether the request may have been sent
 ├ Unauthenticated          a gateway wants a key, a token or a certificate, or another one
 ├ PermissionDenied         the key is known and may not do this
 ├ NotFound                 the server has no such model
 ├ Unimplemented            what answers there does not offer this call
 │  └ NoRoute               a proxy's 404: nothing is routed to a server under this name
 ├ ServerError              the server failed; its log has the reason under the request id
 │  └ AnswerMismatch        the answer belongs to another request; it was thrown away
 └ ClientClosed             this client was closed, or was made before a fork
"""


class InstantIDError(Exception):
    """Base of all errors of this client.

    `request_id` is the id that the server's log has, `code` the name of the gRPC status ("" if nothing was sent),
    `field` the wrong input's name or "", `retry_after` the seconds that the server asks to wait, or None.
    """

    def __init__(
        self, message: str, *, request_id: str = "", code: str = "", field: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.code = code
        self.field = field
        self.retry_after = retry_after


class InvalidArgument(InstantIDError):
    """The request is outside the contract. The text reads `field: value; bound`."""


class Overloaded(InstantIDError):
    """The server cannot take the request now; another try later or elsewhere may pass."""


class QueueTimeout(Overloaded):
    """The request waited in the server's queue for longer than allowed."""


class ResourceExhausted(Overloaded):
    """A gateway's rate limit or quota is used up."""


class DeadlineExceeded(InstantIDError):
    """The time for the call was up; the server stops the work at its next step."""


class Cancelled(InstantIDError):
    """The request was cancelled."""


class Unreachable(InstantIDError):
    """There is no connection to a server. With `sent` False the request never left, and may safely be sent again."""

    sent = True


class Unauthenticated(InstantIDError):
    """A gateway wants a key, a token or a certificate, or another one."""


class PermissionDenied(InstantIDError):
    """The caller is known and may not do this."""


class NotFound(InstantIDError):
    """The server has no such model."""


class Unimplemented(InstantIDError):
    """What answers at the address does not offer this call."""


class NoRoute(Unimplemented):
    """A proxy answered that it routes nothing of this name to a server (HTTP 404)."""


class ServerError(InstantIDError):
    """The server failed at this request; its log has the reason under the request id."""


class AnswerMismatch(ServerError):
    """The answer carries another request's id; it must not be used."""


class ClientClosed(InstantIDError):
    """The client was closed, or was made before a fork; make a new one."""


def invalid(field: str, problem: str, bound: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {problem}; {bound}", field=field)
