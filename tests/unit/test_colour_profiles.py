"""Colour profiles of photos: converted to sRGB, or ignored with a note."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage import data

from instantid.decoding import decode_photo
from instantid.photos import read_photos

from .photo_files import PROFILES, SRGB_CURVE, SWATCHES, encode, fixed, gamma, icc, matrix_profile, swatch


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("name", PROFILES)
def test_colour_profiles_are_converted_to_srgb(name, fmt):
    colour, expected = SWATCHES[name]
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}[fmt]
    encoded = encode(swatch(colour), fmt, icc_profile=matrix_profile(*PROFILES[name]), **options)
    photo = decode_photo(encoded, "photo[0]")
    assert not photo.notes
    assert np.abs(photo.pixels.astype(int) - expected).max() <= 2


def test_transparency_and_orientation_survive_the_conversion():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (32, 64), (200, 120, 90, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 32))
    photo = decode_photo(encode(image, exif=exif, icc_profile=matrix_profile(*PROFILES["P3"])), "photo[0]")
    assert photo.pixels.shape == (32, 64, 3)
    assert (photo.pixels[:, 32:] == 255).all()
    assert np.abs(photo.pixels[:, :32].astype(int) - SWATCHES["P3"][1]).max() <= 2


@pytest.mark.parametrize("profile", ["", "sRGB"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_without_a_profile_or_with_srgb_pixels_stay(mode, profile):
    srgb = (((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)), SRGB_CURVE)
    image = Image.fromarray(data.astronaut()).convert(mode)
    options = {"icc_profile": matrix_profile(*srgb)} if profile else {}
    photo = decode_photo(encode(image, **options), "photo[0]")
    assert not photo.notes
    np.testing.assert_array_equal(photo.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles(mode):
    """A linear grey of 100 is 168 in sRGB."""
    image = swatch((100, 100, 100), "LA" if mode == "LA" else "L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) << 8)
    photo = decode_photo(encode(image, icc_profile=icc(b"GRAY", {b"kTRC": gamma(1)})), "photo[0]")
    assert not photo.notes
    assert np.abs(photo.pixels.astype(int) - 168).max() <= 2


def test_cmyk_profiles():
    """Ink by a table: black ink is black, full cyan without it CIELAB (50, 0, 0), a grey of 119, all else white."""
    ramp = bytes(range(256))
    table = b"".join(bytes((light, 128, 128)) for light in (*(255, 0) * 4, *(128, 0) * 4))
    lut = b"mft1" + struct.pack(">4xBBBx", 4, 3, 2) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + table + ramp * 3
    profile = icc(b"CMYK", {b"A2B0": lut}, pcs=b"Lab ")
    for cyan, expected in ((0, 255), (255, 119)):
        image = Image.new("CMYK", (32, 32), (cyan, 0, 0, 0))
        photo = decode_photo(encode(image, "JPEG", quality=100, icc_profile=profile), "photo[0]")
        assert not photo.notes
        assert np.abs(photo.pixels.astype(int) - expected).max() <= 3


UNUSABLE = {
    "no profile": b"no profile" * 20,
    "cut": matrix_profile(*PROFILES["P3"])[:200],
    "of another kind": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    "grey in colour": icc(b"GRAY", {b"kTRC": gamma(1)}),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_profiles_are_ignored_with_a_note(name):
    photo = decode_photo(encode(swatch((200, 120, 90)), icc_profile=UNUSABLE[name]), "photo[0]")
    assert photo.notes == ("unusable colour profile ignored",)
    assert (photo.pixels == (200, 120, 90)).all()


def test_a_profile_that_cannot_be_unpacked_is_ignored_with_a_note():
    encoded = encode(swatch((200, 120, 90)), icc_profile=matrix_profile(*PROFILES["P3"]))
    start = encoded.index(b"iCCP")
    length = struct.unpack(">I", encoded[start - 4 : start])[0]
    chunk = b"iCCP" + b"ICC Profile\0\0".ljust(length, b"\xff")
    broken = encoded[:start] + chunk + struct.pack(">I", zlib.crc32(chunk)) + encoded[start + 8 + length :]
    photo = decode_photo(broken, "photo[0]")
    assert photo.notes == ("unusable colour profile ignored",)
    assert (photo.pixels == (200, 120, 90)).all()


def test_notes_reach_the_request():
    encoded = encode(swatch((200, 120, 90)), icc_profile=UNUSABLE["cut"])
    canvases = read_photos({"photo": np.array([encoded, encode(swatch((1, 2, 3)))], object)})
    assert [photo.notes for photo in canvases.photos] == [("unusable colour profile ignored",), ()]
