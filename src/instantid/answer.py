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

from instantid.request import GenerationRequest

METADATA_KEY = "instantid"
"""Name of the PNG text chunk; WebP carries the same text as the EXIF image description."""

Report = dict[str, Any]
"""What the caller is told of one picture; it must fit into JSON."""
Finisher = Callable[[Any, GenerationRequest, Report], NDArray[np.uint8] | bytes]
"""Takes a picture (HWC RGB uint8), the request that makes exactly this picture, and the report, to which it may add;
returns the picture for the next finisher. The last one encodes."""


def finish(
    pictures: Sequence[NDArray[np.uint8]],
    request: GenerationRequest,
    finishers: Sequence[Finisher],
    facts: Mapping[str, Any] = {},
) -> tuple[list[bytes], list[bytes]]:
    """The encoded pictures of one request, and the JSON report of each, which begins with its seed and the `facts`."""
    encoded, reports = [], []
    for picture, seed in zip(pictures, request.seeds, strict=True):
        finished: Any = picture
        report: Report = {"seed": seed, **facts}
        for finisher in finishers:
            finished = finisher(finished, replace(request, seed=seed, num_images_per_prompt=1), report)
        encoded.append(finished)
        reports.append(json.dumps(report).encode())
    return encoded, reports


def encoder(png_level: int, embed_metadata: bool) -> Finisher:
    """The last finisher: encodes as the request's `output_format` says; `png_level` is zlib's, 0..9.

    With `embed_metadata` the request's public parameters are stored as JSON: in a PNG text chunk, or in the EXIF image
    description of WebP; JPEG carries none.
    """

    def encode(picture: NDArray[np.uint8], request: GenerationRequest, report: Report) -> bytes:
        buffer, image = io.BytesIO(), Image.fromarray(picture)
        chunks, exif = PngInfo(), Image.Exif()
        if embed_metadata:
            text = json.dumps(request.public(request.seed))
            chunks.add_itxt(METADATA_KEY, text)
            exif[ExifTags.Base.ImageDescription] = text
        if request.output_format == "png":
            image.save(buffer, "PNG", compress_level=png_level, pnginfo=chunks)
        elif request.output_format == "webp":
            image.save(buffer, "WEBP", quality=request.output_quality, method=4, exif=exif)
        else:
            image.save(buffer, "JPEG", quality=request.output_quality, subsampling=0)
        return buffer.getvalue()

    return encode
