"""Encoded photos in: the only place where files that callers send are decoded."""

import io
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from instantid import contract
from instantid.errors import InvalidArgument

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
Note = Literal["unusable colour profile ignored", "decoded at half its sides"]
COLOUR_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for each colour space of an ICC profile that photos have."""
SRGB_TOLERANCE = 2
"""A profile that moves no colour by more levels than this is one of the many forms of sRGB."""
HALVED_PIXELS = 24_000_000
"""Photos with more pixels are decoded at half their sides: JPEG by the transform itself, others by means of 2x2 pixels.
What face analysis then sees differs a little from the reference; memory and time are a quarter of it afterwards."""
MEANS = ("L", "LA", "RGB", "RGBA", "CMYK")
"""The modes in which Pillow can take means of pixels."""


class Photo(NamedTuple):
    """An upright HWC RGB uint8 photo in sRGB, values in [0, 255], its (width, height) as sent, and what the caller
    should know about it."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    notes: tuple[Note, ...] = ()


def decode_photo(data: bytes, field: str) -> Photo:
    """Decode one JPEG, PNG or WebP file, at half its sides if it has more than HALVED_PIXELS.

    Colours are converted to sRGB by the file's ICC profile; a profile that cannot be used is ignored with a note.
    EXIF orientation is applied, transparency is flattened on white, 16-bit grey is scaled to 8 bits, the first
    frame of an animation is taken. The pixel limit is checked on the header, before anything is decoded.

    Raises InvalidArgument, naming `field`, for a file over the contract's limits, of another format, or damaged.
    """
    return decode(open_photo(data, field), field)


def open_photo(data: bytes, field: str) -> Image.Image:
    """One file with its header read and nothing decoded. Raises InvalidArgument as `decode_photo` does."""
    _check_byte_size(data, field)
    try:
        image = Image.open(io.BytesIO(data), formats=contract.PHOTO_FORMATS)
    except UNREADABLE as error:
        likely = (f"looks like {form}" for form, start in OTHER_FORMS.items() if re.match(start, data, re.DOTALL))
        problem = next(likely, "not a readable image")
        raise InvalidArgument(field, problem, f"must be {contract.ANY_PHOTO_FORMAT}") from error
    _check_pixel_size(image.size, field)
    return image


def decode(image: Image.Image, field: str) -> Photo:
    """What `open_photo` opened. Raises InvalidArgument for a damaged file."""
    kind, size = image.format, image.size
    try:
        image = _halved(image)
        notes: tuple[Note, ...] = () if image.size == size else ("decoded at half its sides",)
        upright = ImageOps.exif_transpose(image)
        turned = image.width != image.height and image.size == upright.size[::-1]
        photo = _in_srgb(upright)
        return Photo(photo.pixels, size[::-1] if turned else size, (*notes, *photo.notes))
    except UNREADABLE as error:
        bound = f"must be a whole {contract.ANY_PHOTO_FORMAT}"
        raise InvalidArgument(field, f"damaged {kind} file", bound) from error


def decoded_pixels(image: Image.Image) -> int:
    """How many pixels are decoded: of a large JPEG a quarter."""
    pixels = image.width * image.height
    return pixels // 4 if image.format == "JPEG" and pixels > HALVED_PIXELS else pixels


def _halved(image: Image.Image) -> Image.Image:
    """The image in 8 bits a channel, at half its sides where it is large."""
    full = image.size
    if full[0] * full[1] > HALVED_PIXELS:
        image.draft(image.mode, ((full[0] + 1) // 2, (full[1] + 1) // 2))
    if image.mode.startswith("I"):
        info, image = image.info, Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        image.info = info
    if full[0] * full[1] <= HALVED_PIXELS or image.size != full:
        return image
    if image.mode not in MEANS:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.reduce(2)


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
    if "icc_profile" not in image.info:
        return Photo(_flatten(image), image.size)
    try:
        return Photo(_flatten(_converted(image, image.info["icc_profile"])), image.size)
    except (ImageCms.PyCMSError, ValueError, OSError, TypeError):
        return Photo(_flatten(image), image.size, ("unusable colour profile ignored",))


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
