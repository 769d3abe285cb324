"""Photos in: the only place where encoded photos are read, and how they lie in the canvases of face analysis."""

import io
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from pydantic import Field

from instantid import contract
from instantid.contract import Images
from instantid.errors import InvalidArgument

Inputs = Mapping[str, NDArray[Any] | None]
"""The tensors of one request by name; absent ones are None or missing."""
PhotoSide = Annotated[int, Field(ge=contract.MIN_PHOTO_SIDE, le=contract.MAX_PHOTO_PIXELS)]
ResizedSide = Annotated[int, Field(ge=contract.SIDE_MULTIPLE, le=contract.CANVAS, multiple_of=contract.SIDE_MULTIPLE)]

BROKEN = (struct.error, zlib.error, Image.DecompressionBombError)
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, MemoryError, *BROKEN)
"""What Pillow's decoders raise on damaged or hostile files."""
OTHER_FORMS: Mapping[str, bytes] = {
    "a data URL, not a file's bytes": rb"[\s\"']*data:",
    "a URL, not a file's bytes": rb"[\s\"']*https?://",
    "base64 text, not a file's bytes": rb"[\s\"']*(/9j/|iVBORw0KGgo|UklGR|AAAA..Z0eXB)",
    "an AVIF file": rb".{4}ftyp(avi[fs]|m[is]f1.{4}(....){0,8}avi[fs])",
    "a HEIC file": rb".{4}ftyp(he[iv]|m[is]f1)",
    "a GIF file": rb"GIF8",
    "a TIFF file": rb"II\*\0|MM\0\*",
    "a PDF file": rb"%PDF",
}
"""What is sent instead of a photo most often, by how it begins; the first that matches is meant."""
Note = Literal["unusable colour profile ignored"]
COLOUR_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for each colour space of an ICC profile that photos have."""
SRGB_TOLERANCE = 2
"""A profile that moves no colour by more levels than this is one of the many forms of sRGB."""


class Photo(NamedTuple):
    """An upright HWC RGB uint8 photo in sRGB, values in [0, 255], and what the caller should know about it."""

    pixels: NDArray[np.uint8]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class PhotoSize:
    """Sizes in pixels of one photo: as sent (EXIF orientation applied) and as it lies in the canvas; its notes."""

    width: PhotoSide
    height: PhotoSide
    resized_width: ResizedSide
    resized_height: ResizedSide
    notes: Annotated[tuple[Note, ...], Field(max_length=1)] = ()


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


def read_photos(inputs: Inputs) -> Canvases:
    """Decode and resize every photo of one request, one after the other.

    Raises InvalidArgument, naming the photo, if there are too few or too many, or for what `decode_photo` refuses.
    """
    person, pose = _encoded(contract.PHOTO, inputs), _encoded(contract.POSE_PHOTO, inputs)
    images = np.zeros((len(person) + len(pose), contract.CANVAS, contract.CANVAS, 3), np.uint8)
    sizes = []
    for canvas, (field, data) in zip(images, (person | pose).items(), strict=True):
        photo, notes = decode_photo(data, field)
        resized = resize_photo(photo)
        canvas[: resized.shape[0], : resized.shape[1]] = resized
        sizes.append(PhotoSize(photo.shape[1], photo.shape[0], resized.shape[1], resized.shape[0], notes))
    return Canvases(images, tuple(sizes), bool(pose))


def decode_photo(data: bytes, field: str) -> Photo:
    """Decode one JPEG, PNG or WebP file.

    Colours are converted to sRGB by the file's ICC profile; a profile that cannot be used is ignored with a note.
    EXIF orientation is applied, transparency is flattened on white, 16-bit grey is scaled to 8 bits, the first
    frame of an animation is taken. The pixel limit is checked on the header, before anything is decoded.

    Raises InvalidArgument, naming `field`, for a file over the contract's limits, of another format, or damaged.
    """
    _check_byte_size(data, field)
    try:
        image = Image.open(io.BytesIO(data), formats=contract.PHOTO_FORMATS)
    except UNREADABLE as error:
        likely = (f"looks like {form}" for form, start in OTHER_FORMS.items() if re.match(start, data, re.DOTALL))
        problem = next(likely, "not a readable image")
        raise InvalidArgument(field, problem, f"must be {contract.ANY_PHOTO_FORMAT}") from error
    _check_pixel_size(image.size, field)
    try:
        return _in_srgb(ImageOps.exif_transpose(image))
    except UNREADABLE as error:
        bound = f"must be a whole {contract.ANY_PHOTO_FORMAT}"
        raise InvalidArgument(field, f"damaged {image.format} file", bound) from error


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


def resize_photo(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize an HWC RGB uint8 photo as the InstantID reference does: two PIL bilinear resizes, no padding."""
    rounded, floored = resized_size(photo.shape[1], photo.shape[0])
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


def _check_byte_size(data: bytes, field: str) -> None:
    if not isinstance(data, bytes):
        raise InvalidArgument(field, type(data).__name__, "must be BYTES")
    if not data:
        raise InvalidArgument(field, "empty", f"must be {contract.ANY_PHOTO_FORMAT}")
    if len(data) > contract.MAX_PHOTO_BYTES:
        bound = f"must be at most {contract.MAX_PHOTO_BYTES} bytes"
        raise InvalidArgument(field, f"{len(data)} bytes", bound)


def _check_pixel_size(size: tuple[int, int], field: str) -> None:
    width, height = size
    found = f"{width}x{height} pixels"
    if width * height > contract.MAX_PHOTO_PIXELS:
        raise InvalidArgument(field, found, f"must be at most {contract.MAX_PHOTO_PIXELS} pixels")
    if min(size) < contract.MIN_PHOTO_SIDE:
        raise InvalidArgument(field, found, f"must be at least {contract.MIN_PHOTO_SIDE} pixels a side")
    if max(size) > contract.MAX_PHOTO_ASPECT * min(size):
        bound = f"longer side must be at most {contract.MAX_PHOTO_ASPECT:g} times the shorter"
        raise InvalidArgument(field, found, bound)


def _in_srgb(image: Image.Image) -> Photo:
    if image.mode.startswith("I"):
        info, image = image.info, Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        image.info = info
    if "icc_profile" not in image.info:
        return Photo(_flatten(image))
    try:
        return Photo(_flatten(_converted(image, image.info["icc_profile"])))
    except (ImageCms.PyCMSError, ValueError, OSError, TypeError):
        return Photo(_flatten(image), ("unusable colour profile ignored",))


def _converted(image: Image.Image, icc_profile: bytes) -> Image.Image:
    """The image in sRGB; itself where the profile is sRGB's. Raises what ImageCms does if they do not fit."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
    mode = COLOUR_MODES.get(source.profile.xcolor_space.strip(), "")
    if (image.mode == "CMYK") != (mode == "CMYK") or (mode == "L" and Image.getmodebase(image.mode) != "L"):
        raise ValueError(f"a profile of {source.profile.xcolor_space} in an image of mode {image.mode}")
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB" and _changes_little(transform):
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = transform.apply(image.convert(mode))
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _changes_little(transform: ImageCms.ImageCmsTransform) -> bool:
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    moved = np.asarray(transform.apply(Image.fromarray(colours)))
    return int(np.abs(moved.astype(int) - colours).max()) <= SRGB_TOLERANCE


def _flatten(image: Image.Image) -> NDArray[np.uint8]:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
