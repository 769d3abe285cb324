"""Reads the optional tensors and parameters of one request and checks each against the contract."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from instantid import contract
from instantid.contract import Number
from instantid.errors import Cancelled, InvalidArgument
from instantid.profile import Profile

Inputs = Mapping[str, NDArray[Any] | None]
"""The tensors of one request by name; absent ones are None or missing."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Who asked, how urgent it is, and until when (seconds of `time.monotonic()`)."""

    tenant: str
    priority_level: int
    deadline: float | None


def read_text(inputs: Inputs, field: str, default: str | None, low: int = 0) -> str:
    """UTF-8 text of `low`..2000 characters.

    Raises InvalidArgument if it is missing without a default, not UTF-8, holds NUL, or is too long or short.
    """
    value = inputs.get(field)
    if value is None:
        if default is None:
            raise InvalidArgument(field, "missing", "is required")
        return default
    try:
        text = bytes(_only(value, field)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(field, "not UTF-8", f"byte {error.start} cannot be decoded") from error
    high = contract.MAX_PROMPT_CHARACTERS
    if not low <= len(text) <= high or (low and not text.strip()):
        raise InvalidArgument(field, f"{len(text)} characters", f"must have {low}..{high}, not only blanks")
    if "\0" in text:
        raise InvalidArgument(field, "holds a NUL character", "must be plain text")
    return text


def read_number(inputs: Inputs, number: Number) -> float | None:
    """The value of one numeric option, or its default.

    FP32 is read as the shortest decimal that means it, so that an explicit 0.8 is the default 0.8.
    Raises InvalidArgument for NaN, infinities and values out of bounds.
    """
    value = inputs.get(number.name)
    if value is None:
        return number.default
    text = str(_only(value, number.name))
    found = float(text) if number.datatype == "FP32" else int(text)
    if not math.isfinite(found) or not number.low <= found <= number.high:
        raise InvalidArgument(number.name, text, f"must be within {number.bound}")
    return found


def read_choice(inputs: Inputs, field: str, default: str, choices: tuple[str, ...]) -> str:
    """One of a few names. Raises InvalidArgument, listing them, for any other."""
    text = read_text(inputs, field, default)
    if text not in choices:
        raise InvalidArgument(field, repr(text[:64]), "must be one of " + ", ".join(choices))
    return text


def read_size(inputs: Inputs, photo_width: int, photo_height: int, profile: Profile) -> tuple[int, int]:
    """Width and height of the picture in pixels, multiples of 64.

    What the caller leaves out follows the photo's aspect: both sides at the weights' native area, or the one
    missing beside the one given. Raises InvalidArgument for sides or an area that the weights cannot paint.
    """
    width, height = (_read_side(inputs, field, profile) for field in ("width", "height"))
    aspect = photo_width / photo_height
    if width is None and height is None:
        width = _nearest_side(math.sqrt(profile.native_area * aspect), profile)
        height = _nearest_side(math.sqrt(profile.native_area / aspect), profile)
    width = _nearest_side(height * aspect, profile) if width is None and height else width
    height = _nearest_side(width / aspect, profile) if height is None and width else height
    assert width is not None
    assert height is not None
    if width * height > profile.max_area:
        bound = f"must be at most {profile.max_area} pixels in all"
        raise InvalidArgument("width, height", f"{width}x{height}", bound)
    return width, height


def read_routing(parameters: Mapping[str, Any]) -> Routing:
    """Tenant, priority level and deadline from Triton's request parameters.

    A forwarded header arrives as text, so numbers are taken as text too. Raises InvalidArgument for a parameter
    that does not fit, Cancelled for a deadline that has already passed.
    """
    tenant = parameters.get(contract.PARAMETER_TENANT, contract.DEFAULT_TENANT)
    if not isinstance(tenant, str) or not 1 <= len(tenant) <= contract.MAX_TENANT_CHARACTERS:
        bound = f"must be text of 1..{contract.MAX_TENANT_CHARACTERS} characters"
        raise InvalidArgument(contract.PARAMETER_TENANT, repr(tenant)[:64], bound)
    level = _read_parameter(parameters, contract.PARAMETER_PRIORITY_LEVEL, 0, contract.PRIORITY_LEVELS)
    wait = _read_parameter(parameters, contract.PARAMETER_DEADLINE_MS, None, contract.MAX_DEADLINE_MS)
    if wait == 0:
        raise Cancelled(f"{contract.PARAMETER_DEADLINE_MS}: 0; the deadline has passed")
    deadline = None if wait is None else time.monotonic() + wait / 1000
    return Routing(tenant, level or contract.DEFAULT_PRIORITY_LEVEL, deadline)


def _only(value: NDArray[Any], field: str) -> Any:
    if value.size != 1:
        raise InvalidArgument(field, f"shape {list(value.shape)}", "must be [1]")
    return value.reshape(-1)[0]


def _read_side(inputs: Inputs, field: str, profile: Profile) -> int | None:
    value = inputs.get(field)
    if value is None:
        return None
    side = int(_only(value, field))
    if side % contract.SIDE_MULTIPLE or not profile.min_side <= side <= profile.max_side:
        bound = f"must be a multiple of {contract.SIDE_MULTIPLE} within {profile.min_side}..{profile.max_side}"
        raise InvalidArgument(field, str(side), bound)
    return side


def _nearest_side(side: float, profile: Profile) -> int:
    multiple = contract.SIDE_MULTIPLE
    return min(max(round(side / multiple) * multiple, profile.min_side), profile.max_side)


def _read_parameter(parameters: Mapping[str, Any], name: str, default: int | None, high: int) -> int | None:
    value = parameters.get(name, default)
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(value, bool) or not 0 <= number <= high:
        raise InvalidArgument(name, repr(value)[:64], f"must be a whole number within 0..{high}")
    return number
