"""The ensemble on the real Triton server: the golden way, every input, and independence of neighbours."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from skimage import data

from instantid import contract
from instantid_client import InvalidArgument
from tests.metadata import read_metadata

from .conftest import encoded

FAST = {"num_inference_steps": 4, "seed": 11, "width": 128, "height": 128}
ASTRONAUT_BOX = (181, 78, 271, 179)
ASTRONAUT_LANDMARKS = [(204, 101), (246, 103), (225, 128), (205, 141), (243, 142)]


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)


def difference(one, other):
    return np.abs(pixels(one) - pixels(other)).max()


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    joint = max(width, 0) * max(height, 0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    return joint / (area(a) + area(b) - joint)


@pytest.fixture(scope="module")
def base(client, astronaut):
    return client.generate(astronaut, "a portrait", **FAST)


def test_a_photo_and_a_prompt_are_enough(client, astronaut):
    result = client.generate(astronaut, "a portrait")
    assert pixels(result.images[0]).shape == (128, 128, 3)
    assert Image.open(io.BytesIO(result.images[0])).format == "PNG"
    parameters = read_metadata(result.images[0])
    assert parameters["seed"] == result.seeds[0]
    for number in contract.NUMBERS:
        if number.default is not None:
            assert parameters[number.name] == number.default


def test_the_astronaut_s_face_is_found(base):
    face = base.face
    assert overlap(face.box, ASTRONAUT_BOX) >= 0.5
    assert np.linalg.norm(np.array(face.landmarks) - ASTRONAUT_LANDMARKS, axis=1).max() <= 12
    assert (face.faces_seen, face.photo_index) == (1, 0)


def test_the_same_request_gives_the_same_bytes(client, astronaut, base):
    assert client.generate(astronaut, "a portrait", **FAST).images == base.images


def test_the_parameters_in_a_picture_make_it_again(client, astronaut, base):
    assert client.generate(astronaut, **read_metadata(base.images[0])).images == base.images


CHANGES = {
    "prompt": {"prompt": "a landscape with trees"},
    "negative_prompt": {"negative_prompt": "blurry"},
    "num_inference_steps": {"num_inference_steps": 5},
    "guidance_scale": {"guidance_scale": 2.0},
    "no guidance": {"guidance_scale": 1.0},
    "ip_adapter_scale": {"ip_adapter_scale": 0.0},
    "controlnet_conditioning_scale": {"controlnet_conditioning_scale": 0.0},
    "control_guidance_start": {"control_guidance_start": 0.5},
    "control_guidance_end": {"control_guidance_end": 0.5},
    "a1111": {"prompt": "a (portrait:1.5)", "prompt_syntax": "a1111"},
    "compel": {"prompt": "a (portrait)1.5", "prompt_syntax": "compel"},
    "style": {"style": "Line art"},
    "force_zeros_for_empty_prompt": {"force_zeros_for_empty_prompt": 1},
    "seed": {"seed": 12},
    **{name: {"scheduler": name} for name in contract.SCHEDULERS if name != "euler"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_the_picture(client, astronaut, base, name):
    options = {"prompt": "a portrait", **FAST, **CHANGES[name]}
    result = client.generate(astronaut, options.pop("prompt"), **options)
    assert difference(result.images[0], base.images[0]) > 0


def test_photos_of_every_format(client):
    faces = [
        client.generate(encoded(data.astronaut(), fmt), "a portrait", **FAST).face for fmt in contract.PHOTO_FORMATS
    ]
    assert all(overlap(face.box, ASTRONAUT_BOX) > 0.5 for face in faces)


def test_a_rotated_phone_photo_is_turned_upright(client, base):
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = encoded(np.rot90(data.astronaut(), 1), "PNG", exif=exif)
    assert client.generate(sideways, "a portrait", **FAST).images == base.images


def test_several_photos_of_one_person(client, astronaut, base):
    mirrored = encoded(np.ascontiguousarray(np.fliplr(data.astronaut())))
    result = client.generate([astronaut, mirrored], "a portrait", **FAST)
    assert difference(result.images[0], base.images[0]) > 0
    assert [photo.photo_index for photo in result.face.photos] == [0, 1]
    assert result.face.box == base.face.box
    twice = client.generate([astronaut, astronaut], "a portrait", **FAST)
    assert difference(twice.images[0], base.images[0]) <= 2


def test_the_pose_photo_gives_the_landmarks_only(client, astronaut, base):
    mirrored = encoded(np.ascontiguousarray(np.fliplr(data.astronaut())))
    posed = client.generate(astronaut, "a portrait", pose_photo=mirrored, **FAST)
    assert posed.face.photo_index == 1
    assert overlap(posed.face.box, (512 - 271, 78, 512 - 181, 179)) > 0.5
    assert difference(posed.images[0], base.images[0]) > 0
    same = client.generate(astronaut, "a portrait", pose_photo=astronaut, **FAST)
    assert same.images == base.images


@pytest.mark.parametrize("size", [(64, 64), (192, 128), (128, 256)])
def test_sizes(client, astronaut, size):
    width, height = size
    result = client.generate(astronaut, "a portrait", **{**FAST, "width": width, "height": height})
    assert pixels(result.images[0]).shape == (height, width, 3)


def test_the_default_size_follows_the_photo(client):
    tall = encoded(data.astronaut()[:, 96:352])
    result = client.generate(tall, "a portrait", num_inference_steps=1, seed=1)
    height, width, _ = pixels(result.images[0]).shape
    assert (width, height) == (64, 192)


@pytest.mark.parametrize("fmt", contract.OUTPUT_FORMATS)
def test_output_formats(client, astronaut, base, fmt):
    result = client.generate(astronaut, "a portrait", output_format=fmt, output_quality=90, **FAST)
    assert Image.open(io.BytesIO(result.images[0])).format == fmt.upper()
    assert np.abs(pixels(result.images[0]) - pixels(base.images[0])).mean() < 20


@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral"])
def test_picture_i_of_several_is_the_one_of_seed_plus_i(client, astronaut, scheduler):
    options = {**FAST, "scheduler": scheduler}
    several = client.generate(astronaut, "a portrait", num_images_per_prompt=3, **options)
    assert several.seeds == (11, 12, 13)
    alone = client.generate(astronaut, "a portrait", **{**options, "seed": 13})
    assert difference(several.images[2], alone.images[0]) <= 2


MIXED = [
    {"prompt": "a knight", "seed": 1, "num_inference_steps": 3},
    {"prompt": "a queen in a garden", "seed": 2, "num_inference_steps": 6, "scheduler": "dpmpp_2m_karras"},
    {"prompt": "a sailor", "seed": 3, "num_inference_steps": 9, "guidance_scale": 1.0},
    {"prompt": "a baker", "seed": 4, "num_inference_steps": 5, "ip_adapter_scale": 0.0, "scheduler": "heun"},
    {"prompt": "a pilot", "seed": 5, "num_inference_steps": 7, "controlnet_conditioning_scale": 1.5},
    {"prompt": "a dancer", "seed": 6, "num_inference_steps": 4, "num_images_per_prompt": 2, "scheduler": "unipc"},
    {"prompt": "a smith", "seed": 7, "num_inference_steps": 8, "control_guidance_end": 0.5, "scheduler": "lcm"},
    {"prompt": "a painter", "seed": 8, "num_inference_steps": 5, "scheduler": "euler_ancestral", "width": 192},
]


def test_eight_different_requests_at_once_are_each_as_alone(client, astronaut):
    def generate(options):
        options = {"width": 128, "height": 128, **options}
        return client.generate(astronaut, options.pop("prompt"), **options)

    alone = [generate(options) for options in MIXED]
    with ThreadPoolExecutor(len(MIXED)) as pool:
        together = list(pool.map(generate, MIXED))
    for one, other in zip(alone, together, strict=True):
        assert one.seeds == other.seeds
        for image, same in zip(one.images, other.images, strict=True):
            assert difference(image, same) <= 2


def test_every_picture_has_a_report(server, astronaut):
    with triton.InferenceServerClient(server.grpc_url) as raw:
        values = {"photo": [astronaut], "prompt": [b"a portrait"]}
        inputs = [triton.InferInput(name, [1], "BYTES") for name in values]
        for made, array in zip(inputs, values.values(), strict=True):
            made.set_data_from_numpy(np.array(array, object))
        for name, value, kind in (("seed", np.int64(7), "INT64"), ("num_images_per_prompt", np.int32(2), "INT32")):
            inputs.append(triton.InferInput(name, [1], kind).set_data_from_numpy(np.array([value])))
        answer = raw.infer("instantid", inputs, client_timeout=120)
    reports = [json.loads(report) for report in answer.as_numpy("report")]
    assert [report["seed"] for report in reports] == [7, 8]
    assert reports[0]["prompt"] == {"tokens": 2, "negative_tokens": 0, "chunks": 1}


def test_the_red_hat_behind_100_words_is_painted(client, astronaut):
    words = " ".join(["a", "portrait", "in", "snow"] * 25)
    without, with_hat = (client.generate(astronaut, words + end, **FAST) for end in ("", ", wearing a red hat"))
    assert difference(without.images[0], with_hat.images[0]) > 0


def test_the_eight_styles_are_served_and_others_refused_by_name(client, astronaut):
    with pytest.raises(InvalidArgument, match="Watercolor, Film Noir, Neon, Jungle, Mars, Vibrant Color, Snow, Line"):
        client.generate(astronaut, "a portrait", style="Baroque")


def test_callers_get_their_own_request_back(client, astronaut):
    def generate(i):
        return client.generate(astronaut, "a portrait", **{**FAST, "seed": i}, request_id=f"request-{i}")

    with ThreadPoolExecutor(6) as pool:
        for i, result in enumerate(pool.map(generate, range(6))):
            assert (result.request_id, result.seeds) == (f"request-{i}", (i,))


def test_health(client):
    health = client.health()
    assert health.live
    assert health.ready
