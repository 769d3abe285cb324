import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage import data

from instantid import contract
from instantid.errors import InvalidArgument
from instantid.photos import decode_photo, read_photos, resize_photo, resized_size


def encode(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


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
    np.testing.assert_array_equal(resize_photo(photo), np.asarray(expected))


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


def icc(space, tags, pcs=b"XYZ "):
    """A minimal ICC profile, version 2.4, with these tags."""
    head, table, body = b"", struct.pack(">I", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x02400000, b"mntr", space, pcs, b"acsp")
    head = head.ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


def fixed(*values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def matrix_profile(columns, curve):
    colours = {
        name: b"XYZ " + bytes(4) + fixed(*xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    }
    return icc(b"RGB ", {**colours, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)})


def gamma(value):
    return b"curv" + struct.pack(">4xIH2x", 1, round(value * 256))


SRGB_CURVE = b"para" + struct.pack(">4xH2x", 3) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
PROFILES = {
    "P3": (((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)), SRGB_CURVE),
    "AdobeRGB": (((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), gamma(2.2)),
    "ProPhoto": (((0.79767, 0.28804, 0), (0.13519, 0.71188, 0), (0.03134, 0.00009, 0.82491)), gamma(1.8)),
}
"""Red, green and blue in XYZ under D50, as the spaces' specifications give them, and the curve."""
SWATCHES = {"P3": ((200, 120, 90), (214, 116, 82)), "AdobeRGB": ((200, 120, 90), (224, 121, 88)),
            "ProPhoto": ((120, 100, 80), (160, 114, 95))}  # fmt: skip


def swatch(colour, mode="RGB"):
    return Image.new("RGB", (32, 32), colour).convert(mode)


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
