"""Photos as callers have them, and how they become encoded bytes."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from instantid_client import contract
from instantid_client.errors import invalid

if TYPE_CHECKING:
    from PIL.Image import Image
else:
    Image = Any

Photo: TypeAlias = Union[bytes, bytearray, memoryview, str, "os.PathLike[str]", BinaryIO, npt.NDArray[Any], Image]
"""An encoded photo (bytes or an open binary file), where it lies, a PIL image, or an array: HWC RGB or RGBA or HW
grey, uint8. Images and arrays travel as PNG, an image whose PNG would be too large as JPEG of quality 95."""
LONGEST_PATH = 4096


def is_single(photo: object) -> bool:
    """Whether it is one photo and not a sequence of them."""
    return not isinstance(photo, (list, tuple))


def read_photo(photo: object, field: str) -> bytes:
    """The encoded photo. Raises InvalidArgument if it is empty or too large, OSError if the file cannot be read, and
    TypeError for what is no photo."""
    data = _encoded(photo, field)
    check_size(len(data), field)
    return data


def check_size(size: int, field: str) -> None:
    if not size:
        raise invalid(field, "empty", f"must be {contract.ANY_PHOTO_FORMAT}")
    if size > contract.MAX_PHOTO_BYTES:
        raise invalid(field, f"{size} bytes", f"must be at most {contract.MAX_PHOTO_BYTES} bytes")


def _encoded(photo: object, field: str) -> bytes:
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return bytes(photo)
    if isinstance(photo, (str, os.PathLike)):
        return _path(photo, field).read_bytes()
    if isinstance(photo, np.ndarray):
        return _png(photo, field)
    if _is_pil(photo):
        return _encode_pil(photo)
    data = photo.read() if hasattr(photo, "read") else None
    if not isinstance(data, bytes):
        found = "a file opened as text" if isinstance(data, str) else f"a {type(photo).__name__}"
        raise TypeError(f"{field}: {found}; must be a path, bytes, a binary file, a PIL image or a NumPy array")
    return data


def _path(photo: "str | os.PathLike[str]", field: str) -> Path:
    text = os.fspath(photo)
    if text.startswith("data:") or len(text) > LONGEST_PATH:
        raise invalid(field, "looks like base64 or a data URL", "must be a path, or the decoded bytes")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise invalid(field, "holds a lone surrogate", "must be a path") from error
    if "\0" in text:
        raise invalid(field, "holds a NUL character", "must be a path")
    return Path(text)


def _is_pil(photo: object) -> bool:
    """Pillow is not imported for this: an image can only be one if the caller has imported it."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(photo, module.Image)


def _encode_pil(image: Any) -> bytes:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        upright = upright.convert("RGB")
    profile = upright.info.get("icc_profile") if upright.mode == image.mode else None
    data = _save(upright, format="PNG", icc_profile=profile)
    if len(data) <= contract.MAX_PHOTO_BYTES:
        return data
    return _save(upright.convert("RGB"), format="JPEG", quality=95, subsampling=0, icc_profile=profile)


def _save(image: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _png(array: npt.NDArray[Any], field: str) -> bytes:
    """PNG (ISO/IEC 15948) of an 8-bit array, every row unfiltered."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        found = f"an array of {array.dtype} with shape {list(array.shape)}"
        raise invalid(field, found, "must be uint8, HWC with 3 or 4 channels, or HW")
    height, width = array.shape[:2]
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = array.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
