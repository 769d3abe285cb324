"""Reads back what `instantid.answer` writes into pictures."""

import io
import json

from PIL import ExifTags, Image

from instantid.answer import METADATA_KEY


def read_metadata(data):
    """The parameters in a PNG or WebP file; empty if there are none."""
    image = Image.open(io.BytesIO(data))
    text = image.info.get(METADATA_KEY) or image.getexif().get(ExifTags.Base.ImageDescription, "")
    return json.loads(text) if text else {}
