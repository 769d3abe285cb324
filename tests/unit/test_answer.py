import io
import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from instantid.answer import encoder, finish
from instantid.request import GenerationRequest
from tests.metadata import read_metadata

PICTURE = data.astronaut()[:128, :192]


def request(**changes):
    return GenerationRequest(**{"prompt": "a knight", "width": 192, "height": 128, "seed": 7, **changes})


def decode(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def encode(picture, png_level=1, **changes):
    (encoded,), _ = finish([picture], request(**changes), [encoder(png_level, embed_metadata=True)])
    return encoded


@pytest.mark.parametrize("fmt", ["png", "jpeg", "webp"])
def test_pictures_are_encoded_in_the_format_asked_for(fmt):
    encoded = encode(PICTURE, prompt="ein Mädchen", output_format=fmt)
    assert Image.open(io.BytesIO(encoded)).format == fmt.upper()
    assert np.abs(decode(encoded).astype(int) - PICTURE).mean() < (0.01 if fmt == "png" else 8)
    assert read_metadata(encoded) == (
        {} if fmt == "jpeg" else request(prompt="ein Mädchen").public(7) | {"output_format": fmt}
    )


def test_quality_changes_the_size():
    low, high = (encode(data.astronaut(), output_format="jpeg", output_quality=quality) for quality in (20, 95))
    assert len(low) < len(high) / 2


def test_the_png_level_changes_the_size_and_no_pixel():
    encoded = [encode(PICTURE, level) for level in (0, 1, 9)]
    assert all((decode(picture) == PICTURE).all() for picture in encoded)
    sizes = [len(picture) for picture in encoded]
    assert sizes == sorted(set(sizes), reverse=True)


def test_each_picture_has_its_own_seed_in_file_and_report():
    pictures = [PICTURE, PICTURE[:, ::-1]]
    images, reports = finish(pictures, request(num_images_per_prompt=2), [encoder(1, embed_metadata=True)])
    assert [json.loads(report)["seed"] for report in reports] == [7, 8]
    for picture, image, seed in zip(pictures, images, (7, 8), strict=True):
        np.testing.assert_array_equal(decode(image), picture)
        assert read_metadata(image) == request().public(seed)


def test_metadata_can_be_left_out():
    images, _ = finish([PICTURE], request(), [encoder(1, embed_metadata=False)])
    assert read_metadata(images[0]) == {}


def test_finishers_run_in_order_on_picture_and_report():
    def darken(picture, asked, report):
        report["darkened"] = asked.seed
        return picture // 2

    images, reports = finish([PICTURE], request(), [darken, darken, encoder(1, embed_metadata=False)])
    np.testing.assert_array_equal(decode(images[0]), PICTURE // 2 // 2)
    assert json.loads(reports[0]) == {"seed": 7, "darkened": 7}
