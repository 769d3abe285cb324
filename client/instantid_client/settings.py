"""How a client is made, and who calls."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from instantid_client import contract
from instantid_client._values import check_parameter
from instantid_client.errors import InvalidArgument, invalid
from instantid_client.retry import Retry
from instantid_client.transport import TLS, Channel

DEFAULT_TIMEOUT = 120.0
LONGEST_TIMEOUT = contract.DEADLINE_MS.high / 1000
TokenSource = Callable[[], str | Awaitable[str]]
"""Gives the token for the next call; only the asyncio client awaits one."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The caller's tenant and the request's urgency: `priority` is 1 (most urgent) to 3; None: the server's defaults.

    `traceparent` is the W3C trace context that the request belongs to; without it the current span of the application,
    where that uses OpenTelemetry, is the parent.
    """

    tenant: str | None = None
    priority: int | None = None
    traceparent: str | None = None

    def __post_init__(self) -> None:
        if self.tenant is not None:
            check_parameter(contract.TENANT, self.tenant)
        if self.priority is not None:
            check_parameter(contract.PRIORITY_LEVEL, self.priority)
        if self.traceparent is not None:
            check_metadata({contract.TRACEPARENT.name: check_parameter(contract.TRACEPARENT, self.traceparent)})

    def parameters(self) -> dict[str, str | int]:
        given = {contract.TENANT.name: self.tenant, contract.PRIORITY_LEVEL.name: self.priority}
        return {name: value for name, value in given.items() if value is not None}


class ClientOptions(TypedDict, total=False):
    """How a client is made; times in seconds.

    `timeout`: deadline of each call, 120; it travels with the request, and the server stops working once it has
    passed. `connect_timeout`: for reaching a server, 10. `tls`: encrypt, and with what. `metadata`: sent with every
    call, names in any case. `token`: sent as `authorization: Bearer ...`, asked for before each attempt if it is a
    function. `routing`: tenant and priority. `retries`: none unless given. `keepalive`: seconds between pings on a
    silent connection, none unless given (Triton closes connections that ping more often than every 300 s).
    `channel_options`: gRPC's own by their names, for instance `grpc.ssl_target_name_override`.
    """

    timeout: float
    connect_timeout: float
    tls: TLS | None
    metadata: Mapping[str, str]
    token: str | TokenSource | None
    routing: Routing
    retries: Retry | None
    keepalive: float | None
    channel_options: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """`ClientOptions`, checked and with their defaults. Raises InvalidArgument for a value that cannot be."""

    timeout: float = DEFAULT_TIMEOUT
    connect_timeout: float = 10.0
    tls: TLS | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    token: str | TokenSource | None = None
    routing: Routing = field(default_factory=Routing)
    retries: Retry | None = None
    keepalive: float | None = None
    channel_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("timeout", "connect_timeout", "keepalive"):
            if getattr(self, name) is not None and check_seconds(name, getattr(self, name)) <= 0:
                raise invalid(name, str(getattr(self, name)), "must be more than 0 seconds")
        object.__setattr__(self, "metadata", check_metadata(self.metadata))

    @property
    def channel(self) -> Channel:
        return Channel(self.tls, self.connect_timeout, self.keepalive, self.channel_options)


def check_seconds(name: str, value: Any) -> float:
    """A finite number of at most an hour; zero and less are times that have passed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value <= LONGEST_TIMEOUT:
        raise invalid(name, str(value)[:64], f"must be a number of seconds, at most {LONGEST_TIMEOUT:g}")
    return value


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Names in lower case, as gRPC wants them. Raises InvalidArgument for what HTTP/2 cannot carry."""
    for name, value in metadata.items():
        if not (name and name.isascii() and all(letter.isalnum() or letter in "-_." for letter in name)):
            raise InvalidArgument(
                f"metadata: name {name!r}; must be letters, digits, '-', '_' and '.'", field="metadata"
            )
        if not (isinstance(value, str) and value.isascii() and value.isprintable()):
            raise InvalidArgument(f"metadata: value of {name!r}; must be printable ASCII", field="metadata")
    return {name.lower(): value for name, value in metadata.items()}
