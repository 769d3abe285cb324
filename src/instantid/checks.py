"""The contract's bounds: a value against its option's, and values against one another."""

from collections.abc import Mapping
from typing import Any

from instantid import contract
from instantid.contract import Choice, Number, Option, Side, Text
from instantid.errors import InvalidArgument
from instantid.profile import Profile


def check(option: Option, value: Any) -> Any:
    """`value`, if it is of the option's type and within its bounds; a float option also takes a whole number.

    Raises InvalidArgument, naming the option, the value and the bound.
    """
    match option:
        case Text():
            _check_text(option, value)
        case Choice() if value not in option.choices:
            raise InvalidArgument(option.name, repr(value)[:64], "must be one of " + ", ".join(option.choices))
        case Number() | Side():
            _check_number(option, value)
    return value


def check_together(values: Mapping[str, Any], profile: Profile | None) -> None:
    """What depends on more than one option; sides that are None are not known yet."""
    start, end = values["control_guidance_start"], values["control_guidance_end"]
    if not start < end:
        bound = f"must be less than control_guidance_end, {end:g}"
        raise InvalidArgument("control_guidance_start", f"{start:g}", bound)
    steps = values["num_inference_steps"]
    if values["scheduler"] == "lcm" and steps > contract.LCM_MAX_STEPS:
        bound = f"must be within 1..{contract.LCM_MAX_STEPS} with the scheduler lcm"
        raise InvalidArgument(contract.NUM_INFERENCE_STEPS.name, str(steps), bound)
    width, height = values["width"], values["height"]
    if profile and width and height and width * height > profile.max_area:
        bound = f"must be at most {profile.max_area} pixels in all"
        raise InvalidArgument("width, height", f"{width}x{height}", bound)


def _check_text(option: Text, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidArgument(option.name, repr(value)[:64], f"must be text of {option.bound}")
    if not option.low <= len(value) <= option.high or (option.low and not value.strip()):
        blanks = ", not only blanks" if option.low else ""
        raise InvalidArgument(option.name, f"{len(value)} characters", f"must have {option.bound}{blanks}")
    if "\0" in value:
        raise InvalidArgument(option.name, "holds a NUL character", "must be plain text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidArgument(option.name, "not UTF-8", "holds half of a surrogate pair")
    if option.printable and not value.isprintable():
        raise InvalidArgument(option.name, repr(value)[:64], f"must have {option.bound}")


def _check_number(option: Number | Side, value: Any) -> None:
    whole = option.datatype != "FP32"
    if type(value) is not int and (whole or type(value) is not float):
        raise InvalidArgument(option.name, repr(value)[:64], "must be a whole number" if whole else "must be a number")
    multiple = contract.SIDE_MULTIPLE if isinstance(option, Side) else 1
    if not option.low <= value <= option.high or (whole and value % multiple):
        within = "" if isinstance(option, Side) else "within "
        raise InvalidArgument(option.name, str(value), f"must be {within}{option.bound}")
