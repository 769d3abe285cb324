"""Photos in every form that callers have."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

from instantid_client import FakeClient, InvalidArgument, contract
from instantid_client.fake import PICTURES


def sent(photo, field="photo"):
    client = FakeClient()
    client.generate(**{"photo": b"photo", "prompt": "x", field: photo})
    return client.requests[0].values[field]


def refuse(photo, kind=InvalidArgument, field="photo"):
    client = FakeClient()
    with pytest.raises(kind) as caught:
        client.generate(**{"photo": b"photo", "prompt": "x", field: photo})
    assert not client.requests
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "a.png"
    found.write_bytes(b"A")
    return found


def test_encoded_photos_travel_as_they_are(path):
    for photo in (b"A", bytearray(b"A"), memoryview(b"A"), path, str(path)):
        assert sent(photo) == (b"A",)
        assert sent(photo, "pose_photo") == (b"A",)
    assert sent(io.BytesIO(b"A")) == (b"A",)
    with path.open("rb") as file:
        assert sent(file) == (b"A",)
    assert sent([path, b"B", bytearray(b"C")]) == (b"A", b"B", b"C")
    assert sent((b"B",)) == (b"B",)


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7, 4), (5, 7), (5, 7, 1)])
def test_arrays_travel_as_png(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (data,) = sent(array)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), array.squeeze())
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent(array[:, ::-1])[0]))), array[:, ::-1].squeeze())


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 5, 7), np.uint8), np.zeros((5, 7, 3)), np.zeros((5, 7, 2), np.uint8), np.zeros(5, np.uint8),
     np.zeros((0, 5, 3), np.uint8), np.zeros((1, 5, 7, 3), np.uint8)],
)  # fmt: skip
def test_arrays_that_are_no_pictures_are_refused(array):
    assert str(list(array.shape)) in refuse(array)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "F", "I"])
def test_pil_images_of_every_mode(mode):
    image = Image.new("RGB", (6, 4), (200, 120, 90))
    image = image.convert("L").convert(mode) if mode in ("F", "I") else convert(image, mode)
    arrived = Image.open(io.BytesIO(sent(image)[0]))
    assert arrived.format == "PNG"
    assert arrived.size == (6, 4)
    if mode not in ("F", "I"):
        np.testing.assert_allclose(
            np.asarray(arrived.convert("RGB"), int), np.asarray(image.convert("RGB"), int), atol=2
        )


def convert(image, mode):
    if mode != "LAB":
        return image.convert(mode)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")


def test_a_pil_image_keeps_its_orientation_and_profile():
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), (255, 0, 0))
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    arrived = Image.open(io.BytesIO(sent(Image.open(buffer))[0]))
    assert arrived.size == (4, 6)
    assert arrived.getpixel((3, 0)) == (255, 0, 0)
    assert arrived.info["icc_profile"] == image.info["icc_profile"]


def test_a_pil_image_too_large_for_png_travels_as_jpeg(monkeypatch):
    monkeypatch.setattr(contract, "MAX_PHOTO_BYTES", 60_000)
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)
    assert Image.open(io.BytesIO(sent(Image.fromarray(noise))[0])).format == "JPEG"
    assert "at most 60000 bytes" in refuse(noise)


def test_size_and_number_of_photos():
    assert "photo[0]: empty" in refuse(b"")
    assert "photo[1]: empty" in refuse([b"A", b""])
    assert "pose_photo: empty" in refuse(b"", field="pose_photo")
    assert f"at most {contract.MAX_PHOTO_BYTES} bytes" in refuse(bytes(contract.MAX_PHOTO_BYTES + 1))
    assert "photo: 0 photos" in refuse([])
    assert "photo: 5 photos" in refuse([b"A"] * 5)
    assert "pose_photo: 2 photos" in refuse([b"A"] * 2, field="pose_photo")


@pytest.mark.parametrize("photo", [3, 1.5, object(), io.StringIO("A"), {"a": 1}, {b"a"}, Image])
def test_anything_else_is_a_type_error_that_names_the_type(photo):
    name = "opened as text" if isinstance(photo, io.StringIO) else type(photo).__name__
    assert name in refuse(photo, TypeError)
    assert "photo[1]: " in refuse([b"A", photo], TypeError)


@pytest.mark.parametrize("text", ["data:image/png;base64,iVBOR", "iVBORw0KGgo" * 1000, "a\0b", "\ud800"])
def test_texts_that_are_no_paths_are_refused(text):
    assert refuse(text).startswith("photo[0]: ")


def test_files_that_cannot_be_read_are_os_errors(tmp_path):
    refuse(tmp_path / "missing.png", FileNotFoundError)
    refuse(tmp_path, IsADirectoryError)
    refuse("a" * 300, OSError)


def test_pillow_is_not_needed_for_anything_but_its_own_images(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert sent(np.zeros((2, 2, 3), np.uint8))[0].startswith(b"\x89PNG")
    refuse(object(), TypeError)


def test_the_fake_s_pictures_are_pictures():
    for kind, data in PICTURES.items():
        assert Image.open(io.BytesIO(data)).format.lower() == kind
        client = FakeClient()
        assert client.generate(b"x", "x", output_format=kind).pil().size == (1, 1)
