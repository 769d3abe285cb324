"""Errors that a caller may see.

ServiceError
 ├ InvalidArgument     the request is wrong; names field, value and bound
 │  └ NoUsableFace     no face, or one too small, in a photo
 ├ Overloaded          the server cannot take the request now: it is full, or stopping
 ├ Cancelled           the caller cancelled, or its deadline passed
 └ EngineFailure       the server's own fault; details are in its log under the request id
    └ DeviceFailure    the device cannot be used any more; the server ends and is started again
"""

from typing import ClassVar, Literal

Status = Literal["INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"]


class ServiceError(Exception):
    """Base of all errors whose text is safe to send to the caller; `status` is a TritonError code's name."""

    status: ClassVar[Status] = "INTERNAL"


class InvalidArgument(ServiceError):
    """One field of one request is wrong. The text reads `field: value, bound`."""

    status = "INVALID_ARG"

    def __init__(self, field: str, problem: str, bound: str = "") -> None:
        super().__init__(f"{field}: {problem}" + (f"; {bound}" if bound else ""))
        self.field = field


class NoUsableFace(InvalidArgument):
    """A photo has no face, or the one that would be used is too small."""


class Overloaded(ServiceError):
    """The engine cannot take or keep the request: it is full, or the server is stopping."""

    status = "UNAVAILABLE"


class Cancelled(ServiceError):
    """The caller cancelled, or the deadline it sent has passed."""

    status = "CANCELLED"


class EngineFailure(ServiceError):
    """The server failed at this request; nothing internal is in the text."""


class DeviceFailure(EngineFailure):
    """The device cannot be used any more: every request on it fails, and the process has to end."""
