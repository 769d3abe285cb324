"""InstantID on Triton, for callers: `InstantIDClient`, `AsyncInstantIDClient`, and `FakeClient` for tests.

Errors: `instantid_client.errors`. The command: `instantid --help`.
"""

from instantid_client._options import Options
from instantid_client._version import __version__
from instantid_client.aio import AsyncInstantIDClient
from instantid_client.batch import BatchItem, BatchRequest
from instantid_client.client import InstantIDClient
from instantid_client.errors import (
    AnswerMismatch,
    Cancelled,
    ClientClosed,
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
from instantid_client.fake import AsyncFakeClient, FakeClient, FakeRequest
from instantid_client.photos import Photo
from instantid_client.results import FaceReport, GenerationResult, Health, ServerHealth
from instantid_client.retry import Retry
from instantid_client.settings import ClientOptions, Routing
from instantid_client.transport import TLS, AsyncTransport, Transport

__all__ = [
    "TLS",
    "AnswerMismatch",
    "AsyncFakeClient",
    "AsyncInstantIDClient",
    "AsyncTransport",
    "BatchItem",
    "BatchRequest",
    "Cancelled",
    "ClientClosed",
    "ClientOptions",
    "DeadlineExceeded",
    "FaceReport",
    "FakeClient",
    "FakeRequest",
    "GenerationResult",
    "Health",
    "InstantIDClient",
    "InstantIDError",
    "InvalidArgument",
    "NoRoute",
    "NotFound",
    "Options",
    "Overloaded",
    "PermissionDenied",
    "Photo",
    "QueueTimeout",
    "ResourceExhausted",
    "Retry",
    "Routing",
    "ServerError",
    "ServerHealth",
    "Transport",
    "Unauthenticated",
    "Unimplemented",
    "Unreachable",
    "__version__",
]
