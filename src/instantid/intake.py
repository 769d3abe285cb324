"""First stage: everything that can be wrong with a request is found here, before any GPU is touched."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instantid import contract, options
from instantid.contract import Mode
from instantid.errors import InvalidArgument
from instantid.options import Inputs
from instantid.photos import decode_photo, resize_photo
from instantid.profile import Profile
from instantid.request import GenerationRequest, PhotoSize


@dataclass(frozen=True, slots=True)
class Intake:
    """What the first stage hands on.

    `images` uint8 [n, 1280, 1280, 3] RGB, each resized photo in the top-left corner and zeros elsewhere; `sizes`
    int64 [n, 2], (height, width) of the photo in it.
    """

    images: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    request: GenerationRequest


def take_in(
    inputs: Inputs,
    parameters: Mapping[str, Any],
    request_id: str,
    profile: Profile,
    mode: Mode = contract.MODES["none"],
) -> Intake:
    """Check every input of one request and resolve every default; the seed is drawn if none is given.

    Cheap checks come first, photos are decoded last. Raises InvalidArgument for anything outside the contract.
    """
    routing = options.read_routing(parameters)
    resolved = _read_options(inputs, mode)
    encoded = _encoded_photos(inputs)
    photos = [decode_photo(data, field) for field, data in encoded]
    resized = [resize_photo(photo) for photo in photos]
    height, width = photos[-1 if _has_pose(inputs) else 0].shape[:2]
    picture_width, picture_height = options.read_size(inputs, width, height, profile)
    request = GenerationRequest(
        **resolved,
        width=picture_width,
        height=picture_height,
        photos=tuple(_photo_size(*pair) for pair in zip(photos, resized, strict=True)),
        has_pose_photo=_has_pose(inputs),
        request_id=request_id,
        tenant=routing.tenant,
        priority_level=routing.priority_level,
        deadline=routing.deadline,
    )
    return Intake(*_canvases(resized), request)


def _read_options(inputs: Inputs, mode: Mode) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "prompt": options.read_text(inputs, "prompt", None, contract.MIN_PROMPT_CHARACTERS),
        "negative_prompt": options.read_text(inputs, "negative_prompt", contract.DEFAULT_NEGATIVE_PROMPT),
        "scheduler": options.read_choice(inputs, "scheduler", mode.schedulers[0], mode.schedulers),
        "output_format": options.read_choice(
            inputs, "output_format", contract.DEFAULT_OUTPUT_FORMAT, contract.OUTPUT_FORMATS
        ),
    }
    fields |= {number.name: options.read_number(inputs, number) for number in mode.numbers}
    if fields["seed"] is None:
        fields["seed"] = secrets.randbelow(2**32)
    _check_window(fields["control_guidance_start"], fields["control_guidance_end"])
    _check_lcm(fields["scheduler"], fields["num_inference_steps"])
    return fields


def _check_window(start: float, end: float) -> None:
    if not start < end:
        bound = f"must be less than control_guidance_end, {end:g}"
        raise InvalidArgument("control_guidance_start", f"{start:g}", bound)


def _check_lcm(scheduler: str, steps: int) -> None:
    if scheduler == "lcm" and steps > contract.LCM_MAX_STEPS:
        bound = f"must be within 1..{contract.LCM_MAX_STEPS} with the scheduler lcm"
        raise InvalidArgument(contract.NUM_INFERENCE_STEPS.name, str(steps), bound)


def _has_pose(inputs: Inputs) -> bool:
    return inputs.get("pose_photo") is not None


def _encoded_photos(inputs: Inputs) -> list[tuple[str, bytes]]:
    photos = inputs.get("photo")
    if photos is None:
        raise InvalidArgument("photo", "missing", "is required")
    if not 1 <= photos.size <= contract.MAX_PHOTOS:
        raise InvalidArgument("photo", f"{photos.size} photos", f"must be 1..{contract.MAX_PHOTOS}")
    named = [(f"photo[{i}]", data) for i, data in enumerate(photos.reshape(-1))]
    pose = inputs.get("pose_photo")
    if pose is None:
        return named
    if pose.size != 1:
        raise InvalidArgument("pose_photo", f"{pose.size} photos", "must be 1")
    return [*named, ("pose_photo", pose.reshape(-1)[0])]


def _photo_size(photo: NDArray[np.uint8], resized: NDArray[np.uint8]) -> PhotoSize:
    return PhotoSize(photo.shape[1], photo.shape[0], resized.shape[1], resized.shape[0])


def _canvases(photos: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = np.zeros((len(photos), contract.CANVAS, contract.CANVAS, 3), np.uint8)
    for canvas, photo in zip(images, photos, strict=True):
        canvas[: photo.shape[0], : photo.shape[1]] = photo
    return images, np.array([photo.shape[:2] for photo in photos], np.int64)
