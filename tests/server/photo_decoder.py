"""The photo decoder under atheris (libFuzzer): `python tests/server/photo_decoder.py FOLDER_OF_SEEDS -runs=20000`.

Whatever the bytes are, `decode_photo` gives a photo within the contract's limits or raises InvalidArgument.
"""

import sys
import warnings

import atheris

with atheris.instrument_imports(include=["PIL", "instantid"]):
    from PIL import ImageCms, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    from instantid import contract
    from instantid.decoding import decode_photo
    from instantid.errors import InvalidArgument


def decode(data: bytes) -> None:
    try:
        photo = decode_photo(data, "photo[0]").pixels
    except InvalidArgument:
        return
    assert photo.ndim == 3
    assert photo.shape[2] == 3
    assert photo.shape[0] * photo.shape[1] <= contract.MAX_PHOTO_PIXELS


warnings.simplefilter("ignore")
atheris.Setup(sys.argv, decode)
atheris.Fuzz()
