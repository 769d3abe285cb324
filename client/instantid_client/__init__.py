"""InstantID on Triton, for callers: one synchronous gRPC client. Errors: `instantid_client.errors`."""

from instantid_client.client import TLS, InstantIDClient, Routing
from instantid_client.errors import (
    AnswerMismatch,
    Cancelled,
    DeadlineExceeded,
    InstantIDError,
    InvalidArgument,
    Overloaded,
    QueueTimeout,
    ServerError,
    Unreachable,
)
from instantid_client.options import Options, Photo
from instantid_client.results import FaceReport, GenerationResult, Health

__all__ = [
    "TLS",
    "AnswerMismatch",
    "Cancelled",
    "DeadlineExceeded",
    "FaceReport",
    "GenerationResult",
    "Health",
    "InstantIDClient",
    "InstantIDError",
    "InvalidArgument",
    "Options",
    "Overloaded",
    "Photo",
    "QueueTimeout",
    "Routing",
    "ServerError",
    "Unreachable",
]
