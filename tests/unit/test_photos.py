"""Photos as callers send them: sizes, orientation, transparency, and what is refused."""

import base64
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image
from skimage import data

from instantid import contract
from instantid.decoding import decode_photo
from instantid.errors import Cancelled, InvalidArgument
from instantid.photos import read_photos, resize_photo, resized_size

from .photo_files import encode, swatch


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 512), (1280, 1280)), ((768, 1024), (960, 1280)), ((1080, 1920), (704, 1280))]
)
def test_resized_sizes_of_the_reference(size, expected):
    assert resized_size(*size)[1] == expected


def test_resize_is_two_bilinear_resizes():
    photo = data.chelsea()
    image = Image.fromarray(photo)
    assert image.size == (451, 300)
    once = image.resize((1280, round(1280 / round(1024 / 300 * 451) * 1024)), Image.Resampling.BILINEAR)
    assert once.size == (1280, 852)
    expected = once.resize((1280, 832), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_photo(photo, photo.shape[1::-1]), np.asarray(expected))


ORIENTED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
"""How the stored pixels look for each EXIF orientation, given the upright ones."""


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("fmt", ["PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, fmt):
    upright = data.astronaut()[:96, :64]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENTED[orientation](upright)))
    encoded = encode(stored, fmt, exif=exif, **({"lossless": True} if fmt == "WEBP" else {}))
    np.testing.assert_array_equal(decode_photo(encoded, "photo[0]").pixels, upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_flattened_on_white(mode):
    image = Image.new(mode, (32, 32), (200, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert (decode_photo(encode(image), "photo[0]").pixels == 255).all()


def test_palette_transparency_is_flattened_on_white():
    image = Image.new("P", (32, 32), 0)
    image.putpalette([10, 20, 30])
    assert (decode_photo(encode(image, transparency=0), "photo[0]").pixels == 255).all()


def test_sixteen_bit_grey_is_scaled():
    image = Image.fromarray(np.full((32, 32), 0x80FF, np.uint16))
    assert (decode_photo(encode(image), "photo[0]").pixels == 0x80).all()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "P"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(data.astronaut()).convert(mode)
    photo = decode_photo(encode(image, "JPEG" if mode == "CMYK" else "PNG"), "photo[0]").pixels
    assert photo.shape == (512, 512, 3)
    assert photo.dtype == np.uint8


def bomb(width, height):
    """A PNG whose header claims a size that its few bytes cannot hold."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + encode(Image.new("RGB", (8, 8)))[33:]


BAD = {
    "empty": (b"", "empty"),
    "text": (b"hello" * 9, "not a readable image"),
    "gif": (encode(Image.new("RGB", (64, 64)), "GIF"), "looks like a GIF file; must be JPEG, PNG or WEBP"),
    "avif": (encode(Image.new("RGB", (64, 64)), "AVIF"), "looks like an AVIF file; must be JPEG, PNG or WEBP"),
    "avif in mif1": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1miafavif", "looks like an AVIF file"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "looks like a HEIC file; must be JPEG, PNG or WEBP"),
    "heic in mif1": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "looks like a HEIC file"),
    "data URL": (b"data:image/png;base64,iVBORw0KGgo=", "looks like a data URL, not a file's bytes; must be JPEG"),
    "URL": (b"https://example.com/me.jpg", "looks like a URL, not a file's bytes"),
    **{
        f"base64 {form}": (base64.b64encode(encode(swatch((9, 9, 9)), form)), "looks like base64 text, not a file's")
        for form in ("JPEG", "PNG", "WEBP", "AVIF")
    },
    "cut": (encode(Image.fromarray(data.astronaut()))[:9000], "damaged PNG"),
    "cut jpeg": (encode(Image.fromarray(data.astronaut()), "JPEG")[:9000], "damaged JPEG"),
    "bytes": (b"\xff" * (contract.MAX_PHOTO_BYTES + 1), f"at most {contract.MAX_PHOTO_BYTES} bytes"),
    "pixels": (bomb(8001, 8000), f"8001x8000 pixels; must be at most {contract.MAX_PHOTO_PIXELS}"),
    "bomb": (bomb(60000, 60000), "not a readable image|60000x60000"),
    "small": (encode(Image.new("RGB", (15, 64))), "15x64 pixels; must be at least 16"),
    "thin": (encode(Image.new("RGB", (16, 129))), "at most 8 times"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_photos_are_named_with_the_bound(name):
    encoded, message = BAD[name]
    with pytest.raises(InvalidArgument, match=message) as caught:
        decode_photo(encoded, "photo[2]")
    assert str(caught.value).startswith("photo[2]: ")


def plain(width, height, form, **options):
    return encode(Image.new("RGB", (width, height), (200, 100, 50)), form, **options)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_large_photo_is_decoded_at_half_its_sides_and_keeps_its_size(form):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo = decode_photo(plain(6001, 4000, form, exif=exif), "photo[0]")
    assert photo.pixels.shape == (3001, 2000, 3)
    assert photo.size == (4000, 6001)
    assert photo.notes == ("decoded at half its sides",)
    assert np.abs(photo.pixels.astype(int) - (200, 100, 50)).max() <= 4
    assert resize_photo(photo.pixels, photo.size).shape[1::-1] == resized_size(4000, 6001)[1]


@pytest.mark.parametrize("mode", ["1", "P", "L", "LA", "RGBA", "I;16"])
def test_large_photos_of_every_mode(mode):
    image = Image.new("I;16", (5000, 5000), 0x8081) if mode == "I;16" else Image.new("RGB", (5000, 5000)).convert(mode)
    assert decode_photo(encode(image), "photo[0]").pixels.shape == (2500, 2500, 3)


def test_what_a_request_may_have_to_decode_is_bounded():
    png, jpeg, small = bomb(7000, 7000), plain(7000, 7000, "JPEG"), plain(64, 64, "PNG")
    with pytest.raises(
        InvalidArgument, match=r"^photo\[0\], photo\[1\], pose_photo: 147000000 pixels to decode; must be"
    ):
        read_photos({"photo": np.array([png, png], object), "pose_photo": np.array([png], object)})
    with pytest.raises(InvalidArgument, match=r"photo\[0\]: damaged PNG"):
        read_photos({"photo": np.array([png, small], object), "pose_photo": np.array([png], object)})
    canvases = read_photos({"photo": np.array([jpeg] * 4, object)})
    assert [photo.width for photo in canvases.photos] == [7000] * 4


def test_nothing_is_decoded_once_the_deadline_has_passed():
    cut = encode(Image.fromarray(data.astronaut()))[:9000]
    with pytest.raises(Cancelled, match=r"^deadline_ms: the deadline passed before photo\[0\] was decoded"):
        read_photos({"photo": np.array([cut], object)}, time.monotonic())
    with pytest.raises(InvalidArgument, match="damaged"):
        read_photos({"photo": np.array([cut], object)}, time.monotonic() + 60)
