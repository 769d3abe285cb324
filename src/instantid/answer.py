"""Pictures out: what is done to each finished picture, and the only place where pictures are encoded."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from instantid import contract
from instantid.request import GenerationRequest

METADATA_KEY = "instantid"
"""Name of the PNG text chunk; WebP carries the same text as the EXIF image description."""

Picture = NDArray[np.uint8] | bytes
"""HWC RGB uint8, values in [0, 255]; bytes once it is encoded."""
Report = dict[str, Any]
"""What the caller is told of one picture; it must fit into JSON."""
Finisher = Callable[[Any, GenerationRequest, Report], Picture]
"""Takes a picture, the request that makes exactly this picture, and the report, to which it may add; gives the picture
that the next one takes. The last one encodes."""


def finish(
    pictures: Sequence[NDArray[np.uint8]], request: GenerationRequest, finishers: Sequence[Finisher]
) -> tuple[list[bytes], list[bytes]]:
    """The encoded pictures of one request, and the JSON report of each."""
    answers = [
        _finish_one(picture, replace(request, seed=seed, num_images_per_prompt=1), finishers)
        for picture, seed in zip(pictures, request.seeds, strict=True)
    ]
    return [encoded for encoded, _ in answers], [json.dumps(report).encode() for _, report in answers]


def encoder(png_level: int, embed_metadata: bool) -> Finisher:
    """The last finisher: encodes in the format that the request asks for, with its parameters in PNG and WebP files."""

    def encode(picture: NDArray[np.uint8], request: GenerationRequest, report: Report) -> bytes:
        metadata = request.public(request.seed) if embed_metadata else {}
        return encode_picture(picture, request.output_format, request.output_quality, metadata, png_level)

    return encode


def encode_picture(
    picture: NDArray[np.uint8], output_format: str, quality: int, metadata: Mapping[str, Any], png_level: int
) -> bytes:
    """Encode an HWC RGB uint8 picture as png, jpeg or webp.

    `quality` (1..100) acts on jpeg and webp, `png_level` (zlib's 0..9) on png. `metadata` is stored as JSON text: a PNG
    text chunk, or the EXIF image description of WebP; JPEG carries none.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    text = json.dumps(metadata) if metadata else ""
    if output_format == "png":
        image.save(buffer, "PNG", compress_level=png_level, pnginfo=_png_text(text))
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


def _finish_one(
    picture: NDArray[np.uint8], request: GenerationRequest, finishers: Sequence[Finisher]
) -> tuple[bytes, Report]:
    report: Report = {"seed": request.seed}
    finished: Picture = picture
    for finisher in finishers:
        finished = finisher(finished, request, report)
    assert isinstance(finished, bytes), "the last finisher must encode"
    return finished, report


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
