"""Values of a call, checked against the contract before anything is sent; this and `_flags` alone read its options."""

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from instantid_client import contract
from instantid_client.errors import InvalidArgument, invalid
from instantid_client.photos import is_single, read_photo

Tensors = Mapping[str, npt.NDArray[Any]]
OPTIONS: Mapping[str, contract.Option] = {option.name: option for option in contract.OPTIONS}
FIELDS = frozenset(OPTIONS) | {parameter.name for parameter in contract.PARAMETERS}
NUMPY_TYPES: Mapping[str, Any] = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


def make_tensors(values: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Tensors of the values that are given (None means the default); photos are read.

    Raises InvalidArgument naming field, value and bound, TypeError for an unknown name or what is no photo, and
    OSError for a photo that cannot be read.
    """
    checked = check_values(values)
    for name, value in checked.items():
        if isinstance(OPTIONS[name], contract.Images):
            checked[name] = _read_photos(name, value)
    return {name: _tensor(OPTIONS[name], value) for name, value in checked.items()}


def check_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same without reading photos: numbers as the tensor has them, texts, lists of photos."""
    unknown = sorted(set(values) - set(OPTIONS))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; there are {', '.join(OPTIONS)}")
    return {name: _check(OPTIONS[name], value) for name, value in values.items() if value is not None}


def check_parameter(parameter: contract.Text | contract.Number, value: Any) -> Any:
    return _check(parameter, value)


def _check(option: contract.Option, value: Any) -> Any:
    if isinstance(option, contract.Images):
        return _photos(option, value)
    if isinstance(option, contract.Text):
        return _text(option, value)
    if isinstance(option, contract.Choice):
        return _choice(option, value)
    if isinstance(option, contract.Side):
        return _side(option, value)
    return _number(option, value)


def _photos(option: contract.Images, value: Any) -> Sequence[Any]:
    photos = [value] if is_single(value) else list(value)
    if not max(option.low, 1) <= len(photos) <= option.high:
        raise invalid(option.name, f"{len(photos)} photos", f"must be {option.bound}")
    return photos


def _read_photos(name: str, photos: Sequence[Any]) -> list[bytes]:
    several = OPTIONS[name].high > 1  # type: ignore[union-attr]
    return [read_photo(photo, f"{name}[{i}]" if several else name) for i, photo in enumerate(photos)]


def _text(option: contract.Text, value: Any) -> str:
    text = _string(option.name, value)
    if not option.low <= len(text) <= option.high or (option.low and not text.strip()):
        raise invalid(option.name, f"{len(text)} characters", f"must have {option.low}..{option.high}, not only blanks")
    if "\0" in text:
        raise invalid(option.name, "holds a NUL character", "must be plain text")
    return text


def _choice(option: contract.Choice, value: Any) -> str:
    text = _string(option.name, value)
    if text not in option.choices:
        raise invalid(option.name, repr(text[:64]), f"must be one of {', '.join(option.choices)}")
    return text


def _side(option: contract.Side, value: Any) -> int:
    side = _whole(option.name, value)
    if side % contract.SIDE_MULTIPLE or not option.low <= side <= option.high:
        raise invalid(option.name, _shown(side), f"must be {option.bound}")
    return side


def _number(option: contract.Number, value: Any) -> float:
    number = _real(option.name, value) if option.datatype == "FP32" else _whole(option.name, value)
    if not option.low <= number <= option.high:
        raise invalid(option.name, _shown(number), f"must be within {option.bound}")
    return number


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid(name, "holds a lone surrogate", f"character {error.start} cannot be encoded") from error
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return operator.index(value)
    number = _real(name, value, "a whole number")
    if not number.is_integer():
        raise invalid(name, _shown(value), "must be a whole number")
    return int(number)


def _real(name: str, value: Any, wanted: str = "a number") -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise _wrong_type(name, value, wanted)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise invalid(name, _shown(value), "must be a finite number")
    return number


def _wrong_type(name: str, value: Any, wanted: str) -> InvalidArgument:
    return invalid(name, f"{_shown(value)} is a {type(value).__name__}", f"must be {wanted}")


def _shown(value: Any) -> str:
    """The value in at most 64 characters; Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:64] if isinstance(value, (str, bytes)) else str(value)[:64]


def _tensor(option: contract.Option, value: Any) -> npt.NDArray[Any]:
    if isinstance(option, contract.Images):
        return np.array(value, object)
    if option.datatype == "BYTES":
        return np.array([value.encode()], object)
    return np.array([value], NUMPY_TYPES[option.datatype])
