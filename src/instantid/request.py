"""The resolved request: read and checked once at the edge, carried as JSON between the models."""

import json
import math
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from instantid import contract
from instantid.checks import check, check_together
from instantid.contract import Images, Number, Option
from instantid.errors import Cancelled, InvalidArgument
from instantid.photos import Canvases, Inputs, PhotoSize, read_photos
from instantid.profile import Profile

NUMPY_TYPES: Mapping[str, Any] = {"UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}
MAX_CANVASES = contract.PHOTO.high + contract.POSE_PHOTO.high


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request with every default filled in.

    `photos` lists the canvas's photos: those of the person, and the pose photo last where `has_pose_photo`.
    `pictures` says what each picture of the tensor of that name is. `deadline` is an absolute time of
    `time.monotonic()` in seconds, or None; `marks` are times of it: begin and end of intake and
    of face conditioning. Picture i has `seed + i`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    # Options of the contract, written by `python -m build_tools configs`:
    prompt: str
    negative_prompt: str = ""
    prompt_syntax: str = "plain"
    style: str = "none"
    force_zeros_for_empty_prompt: int = 0
    width: int
    height: int
    num_inference_steps: int = 30
    guidance_scale: float = 5.0
    ip_adapter_scale: float = 0.8
    controlnet_conditioning_scale: float = 0.8
    control_guidance_start: float = 0.0
    control_guidance_end: float = 1.0
    num_images_per_prompt: int = 1
    seed: int = 0
    output_quality: int = 95
    scheduler: str = "euler"
    output_format: str = "png"
    tenant: str = "default"
    priority_level: int = 2
    # End of the options.
    photos: Annotated[tuple[PhotoSize, ...], Field(max_length=MAX_CANVASES)] = ()
    has_pose_photo: bool = False
    pictures: tuple[Literal["landmarks"], ...] = ("landmarks",)
    request_id: str = ""
    deadline: float | None = None
    traceparent: Annotated[str, Field(max_length=contract.TRACEPARENT.high)] = ""
    marks: Annotated[tuple[float, ...], Field(max_length=4)] = field(default=(), compare=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.seed + i for i in range(self.num_images_per_prompt))

    @property
    def guidance(self) -> bool:
        """Whether unconditional rows are needed: only above 1, where they change the result."""
        return self.guidance_scale > 1.0

    @property
    def zero_negative_prompt(self) -> bool:
        return self.guidance and bool(self.force_zeros_for_empty_prompt) and not self.negative_prompt

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes, profile: Profile | None = None) -> "GenerationRequest":
        """Read what `to_json` wrote, within the contract's bounds, or the narrower ones of `profile`.

        Raises InvalidArgument for anything else: inner models can be reached by any client of the port.
        """
        try:
            request = _PARSER.validate_json(text, strict=True)
            missing = {each.name for each in fields(cls)} - from_json(text).keys()
        except ValidationError as error:
            first = error.errors()[0]
            found = "missing" if first["type"] == "missing" else repr(first["input"])[:64]
            raise InvalidArgument(".".join(map(str, ("request", *first["loc"]))), found, first["msg"]) from None
        if missing:
            raise InvalidArgument(f"request.{min(missing)}", "missing", "is required")
        options = profile.options if profile else contract.OPTIONS
        for option in (*_fields(options), contract.TENANT, contract.PRIORITY_LEVEL):
            check(option, getattr(request, option.name))
        check_together(asdict(request), profile)
        return request

    def public(self, seed: int) -> dict[str, Any]:
        """The parameters that reproduce the picture of `seed`, by contract name; no photo, no embedding."""
        options = {option.name: getattr(self, option.name) for option in _fields(contract.OPTIONS)}
        return {**options, "seed": seed, "num_images_per_prompt": 1}


_PARSER = TypeAdapter(GenerationRequest)


def read_request(
    inputs: Inputs,
    parameters: Mapping[str, Any],
    profile: Profile,
    request_id: str = "",
    arrived: float | None = None,
) -> tuple[GenerationRequest, Canvases]:
    """Check every input of one request, resolve every default and decode the photos.

    Cheap checks come first, photos are decoded last. `arrived`, in seconds of `time.monotonic()`, is when deadlines are
    counted from; None: now. Raises InvalidArgument for anything outside the contract, and Cancelled for a deadline that
    has already passed.
    """
    values = _read_parameters(parameters, time.monotonic() if arrived is None else arrived)
    values |= {option.name: _read(option, inputs) for option in _fields(profile.options)}
    values |= _styled(values, profile)
    check_together(values, profile)
    canvases = read_photos(inputs, values["deadline"])
    pose = canvases.photos[-1 if canvases.has_pose_photo else 0]
    sides = fill_sides(values["width"], values["height"], pose.width / pose.height, profile)
    values |= {"width": sides[0], "height": sides[1]}
    check_together(values, profile)
    request = GenerationRequest(
        **values, photos=canvases.photos, has_pose_photo=canvases.has_pose_photo, request_id=request_id
    )
    return request, canvases


def fill_sides(width: int | None, height: int | None, aspect: float, profile: Profile) -> tuple[int, int]:
    """Width and height of the picture in pixels, multiples of 64.

    What is None follows `aspect`, width over height: both sides at the weights' native area, or one beside the other.
    """
    if width is None:
        natural = math.sqrt(profile.native_area * aspect) if height is None else height * aspect
        other = height or _nearest_side(math.sqrt(profile.native_area / aspect), profile)
        return _nearest_side(natural, profile), other
    return width, height or _nearest_side(width / aspect, profile)


def _nearest_side(side: float, profile: Profile) -> int:
    multiple = contract.SIDE_MULTIPLE
    return min(max(round(side / multiple) * multiple, profile.min_side), profile.max_side)


def _fields(options: Iterable[Option]) -> list[Option]:
    """The options that are fields of a request: all but the photos."""
    return [option for option in options if not isinstance(option, Images)]


def _read(option: Option, inputs: Inputs) -> Any:
    """The value of one option's tensor, or what stands for an absent one."""
    array = inputs.get(option.name)
    if array is not None:
        return check(option, _value(option, array))
    if option.name in contract.REQUIRED:
        raise InvalidArgument(option.name, "missing", "is required")
    drawn = isinstance(option, Number) and option.default is None
    return secrets.randbelow(2**32) if drawn else option.default


def _styled(values: Mapping[str, Any], profile: Profile) -> dict[str, str]:
    """Both prompts inside the template that the request names: later stages, and who reads a picture's parameters,
    need no list of styles."""
    template = next((style for style in profile.styles if style.name == values["style"]), None)
    if template is None:
        return {}
    prompt, negative_prompt = template.apply(values["prompt"], values["negative_prompt"])
    return {
        "prompt": check(contract.PROMPT, prompt),
        "negative_prompt": check(contract.NEGATIVE_PROMPT, negative_prompt),
        "style": contract.NO_STYLE,
    }


def _value(option: Option, array: NDArray[Any]) -> Any:
    """The only element. FP32 is read as the shortest decimal that means it, so that an explicit 0.8 is the default."""
    if array.size != 1:
        raise InvalidArgument(option.name, f"shape {list(array.shape)}", "must be [1]")
    element: Any = array.reshape(-1)[0]
    if not isinstance(element, NUMPY_TYPES.get(option.datatype, bytes)):
        raise InvalidArgument(option.name, type(element).__name__, f"must be {option.datatype}")
    if not isinstance(element, bytes):
        return float(str(element)) if option.datatype == "FP32" else int(element)
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(option.name, "not UTF-8", f"byte {error.start} cannot be decoded") from error


def _read_parameters(parameters: Mapping[str, Any], arrived: float) -> dict[str, Any]:
    """Tenant, priority level (0 is Triton's word for the default) and deadline, from Triton's request parameters."""
    named = {option.name: parameters.get(option.name, option.default) for option in contract.PARAMETERS}
    for name, value in named.items():
        if name != contract.TENANT.name and isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value):
            named[name] = int(value)  # a forwarded header arrives as text
    level = check(replace(contract.PRIORITY_LEVEL, low=0), named[contract.PRIORITY_LEVEL.name])
    wait = named[contract.DEADLINE_MS.name]
    if wait is not None and check(contract.DEADLINE_MS, wait) == 0:
        raise Cancelled(f"{contract.DEADLINE_MS.name}: 0; the deadline has passed")
    return {
        "tenant": check(contract.TENANT, named[contract.TENANT.name]),
        "priority_level": level or contract.PRIORITY_LEVEL.default,
        "deadline": None if wait is None else arrived + wait / 1000,
    }
