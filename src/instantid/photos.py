"""Photos in, pictures out: the only place where encoded image bytes are read or written."""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from instantid import contract
from instantid.errors import InvalidArgument

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged or hostile files."""

METADATA_KEY = "instantid"
"""Name of the PNG text chunk; WebP and JPEG carry the same text as the EXIF image description."""


def decode_photo(data: bytes, field: str) -> NDArray[np.uint8]:
    """Decode one JPEG, PNG or WebP file to an upright HWC RGB uint8 array, values in [0, 255].

    EXIF orientation is applied, transparency is flattened on white, 16-bit grey is scaled to 8 bits, the first
    frame of an animation is taken. The pixel limit is checked on the header, before anything is decoded.

    Raises InvalidArgument, naming `field`, for a file over the contract's limits, of another format, or damaged.
    """
    _check_byte_size(data, field)
    try:
        image = Image.open(io.BytesIO(data), formats=contract.PHOTO_FORMATS)
    except UNREADABLE as error:
        raise InvalidArgument(field, "not a readable image", f"must be {_formats()}") from error
    _check_pixel_size(image.size, field)
    try:
        return np.asarray(_flatten(ImageOps.exif_transpose(image)))
    except UNREADABLE as error:
        raise InvalidArgument(field, f"damaged {image.format} file", f"must be a whole {_formats()}") from error


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


def encode_picture(
    picture: NDArray[np.uint8], output_format: str, quality: int, metadata: Mapping[str, Any] | None
) -> bytes:
    """Encode an HWC RGB uint8 picture as png, jpeg or webp.

    `quality` (1..100) acts on jpeg and webp. `metadata` is stored as JSON text: a PNG text chunk, or the EXIF
    image description of WebP; JPEG carries none.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    text = json.dumps(metadata) if metadata else ""
    if output_format == "png":
        image.save(buffer, "PNG", compress_level=4, pnginfo=_png_text(text))
    elif output_format == "webp":
        image.save(buffer, "WEBP", quality=quality, method=4, exif=_exif_text(text))
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def read_metadata(data: bytes) -> dict[str, Any]:
    """The parameters that `encode_picture` stored in a PNG or WebP file; empty if there are none."""
    image = Image.open(io.BytesIO(data), formats=contract.PHOTO_FORMATS)
    text = image.info.get(METADATA_KEY) or image.getexif().get(ExifTags.Base.ImageDescription, "")
    return dict(json.loads(text)) if text else {}


def _check_byte_size(data: bytes, field: str) -> None:
    if not data:
        raise InvalidArgument(field, "empty", f"must be {_formats()}")
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


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _formats() -> str:
    return ", ".join(contract.PHOTO_FORMATS[:-1]) + " or " + contract.PHOTO_FORMATS[-1]


def _png_text(text: str) -> PngInfo:
    info = PngInfo()
    if text:
        info.add_itxt(METADATA_KEY, text)
    return info


def _exif_text(text: str) -> Image.Exif:
    exif = Image.Exif()
    if text:
        exif[ExifTags.Base.ImageDescription] = text
    return exif
