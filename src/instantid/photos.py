"""The photos of one request, and how they lie in the canvases of face analysis."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from instantid import contract
from instantid.contract import Images
from instantid.decoding import Note, decode, decoded_pixels, open_photo
from instantid.errors import Cancelled, InvalidArgument

Inputs = Mapping[str, NDArray[Any] | None]
"""The tensors of one request by name; absent ones are None or missing."""
PhotoSide = Annotated[int, Field(ge=contract.MIN_PHOTO_SIDE, le=contract.MAX_PHOTO_PIXELS)]
ResizedSide = Annotated[int, Field(ge=contract.SIDE_MULTIPLE, le=contract.CANVAS, multiple_of=contract.SIDE_MULTIPLE)]


@dataclass(frozen=True, slots=True)
class PhotoSize:
    """Sizes in pixels of one photo: as sent (EXIF orientation applied) and as it lies in the canvas; its notes."""

    width: PhotoSide
    height: PhotoSide
    resized_width: ResizedSide
    resized_height: ResizedSide
    notes: Annotated[tuple[Note, ...], Field(max_length=2)] = ()


@dataclass(frozen=True, slots=True)
class Canvases:
    """The photos of one request, those of the person first, and the pose photo last where there is one.

    `images` uint8 [n, 1280, 1280, 3] RGB, each resized photo in the top-left corner and zeros elsewhere.
    """

    images: NDArray[np.uint8]
    photos: tuple[PhotoSize, ...]
    has_pose_photo: bool

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [n, 2], (height, width) of the photo in each canvas."""
        return np.array([(photo.resized_height, photo.resized_width) for photo in self.photos], np.int64)


def read_photos(inputs: Inputs, deadline: float | None = None) -> Canvases:
    """Decode and resize every photo of one request, one after the other, if all headers are within the limits.

    Raises InvalidArgument, naming the photo, if there are too few or too many, or for what `decode_photo` refuses;
    Cancelled before the next photo once `deadline`, in seconds of `time.monotonic()`, has passed.
    """
    person, pose = _encoded(contract.PHOTO, inputs), _encoded(contract.POSE_PHOTO, inputs)
    opened = {field: open_photo(data, field) for field, data in (person | pose).items()}
    if (pixels := sum(map(decoded_pixels, opened.values()))) > contract.MAX_REQUEST_PIXELS:
        bound = f"must be at most {contract.MAX_REQUEST_PIXELS} in all"
        raise InvalidArgument(", ".join(opened), f"{pixels} pixels to decode", bound)
    images = np.zeros((len(opened), contract.CANVAS, contract.CANVAS, 3), np.uint8)
    sizes = []
    for canvas, (field, image) in zip(images, opened.items(), strict=True):
        if deadline is not None and time.monotonic() >= deadline:
            raise Cancelled(f"{contract.DEADLINE_MS.name}: the deadline passed before {field} was decoded")
        photo = decode(image, field)
        resized = resize_photo(photo.pixels, photo.size)
        canvas[: resized.shape[0], : resized.shape[1]] = resized
        sizes.append(PhotoSize(*photo.size, resized.shape[1], resized.shape[0], photo.notes))
    return Canvases(images, tuple(sizes), bool(pose))


def resized_size(width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes (width, height) of the two resizes of the reference's `resize_img`: rounded, then floored to 64.

    Longer side 1280; a first rounding at a shorter side of 1024 moves the other side by at most one pixel.
    """
    ratio = 1024 / min(height, width)
    width, height = round(ratio * width), round(ratio * height)
    ratio = contract.CANVAS / max(height, width)
    rounded = (round(ratio * width), round(ratio * height))
    multiple = contract.SIDE_MULTIPLE
    return rounded, (rounded[0] // multiple * multiple, rounded[1] // multiple * multiple)


def resize_photo(photo: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an HWC RGB uint8 photo as the InstantID reference does one of this (width, height): two PIL bilinear
    resizes, no padding."""
    rounded, floored = resized_size(*size)
    image = Image.fromarray(photo).resize(rounded, Image.Resampling.BILINEAR)
    return np.asarray(image.resize(floored, Image.Resampling.BILINEAR))


def _encoded(option: Images, inputs: Inputs) -> dict[str, Any]:
    """The encoded photos of one option, each by the name that errors call it."""
    array = inputs.get(option.name)
    if array is None:
        if option.low:
            raise InvalidArgument(option.name, "missing", "is required")
        return {}
    if not max(option.low, 1) <= array.size <= option.high:
        bound = f"must be 1..{option.high}" if option.high > 1 else "must be 1"
        raise InvalidArgument(option.name, f"{array.size} photos", bound)
    names = [f"{option.name}[{i}]" for i in range(array.size)] if option.high > 1 else [option.name]
    return dict(zip(names, array.reshape(-1).tolist(), strict=True))
