"""Everything a caller can get wrong, on the real server: a clear message for that request alone."""

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc as triton
from skimage import data
from tritonclient.utils import InferenceServerException

from instantid import contract
from instantid_client import InvalidArgument

from .conftest import encoded

TYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


@pytest.fixture(scope="module")
def raw(server):
    with triton.InferenceServerClient(server.grpc_url) as client:
        yield client


def tensor(name, values, datatype="BYTES"):
    array = np.array(values, object if datatype == "BYTES" else TYPES[datatype])
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def refused(raw, inputs, **options):
    with pytest.raises(InferenceServerException) as caught:
        raw.infer("instantid", inputs, client_timeout=60, **options)
    message = caught.value.message()
    assert "Traceback" not in message
    assert ".py" not in message
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", message
    return message


def bomb():
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    body = b"IDAT" + zlib.compress(b"\0" * 1000)
    data_chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + data_chunk


OUT_OF_BOUNDS = [
    (number.name, number.datatype, value, number.bound)
    for number in contract.NUMBERS
    for value in ((number.low - 1, number.high + 1) + ((np.nan, np.inf) if number.datatype == "FP32" else ()))
]


@pytest.mark.parametrize(("name", "datatype", "value", "bound"), OUT_OF_BOUNDS)
def test_numbers_out_of_bounds(raw, astronaut, name, datatype, value, bound):
    inputs = [tensor("photo", [astronaut]), tensor("prompt", [b"x"]), tensor(name, [value], datatype)]
    message = refused(raw, inputs)
    assert f"{name}: " in message
    assert bound in message


TEXTS = {
    "prompt empty": ("prompt", b"", "prompt: 0 characters; must have 1..2000"),
    "prompt long": ("prompt", b"a" * 2001, "prompt: 2001 characters"),
    "prompt not UTF-8": ("prompt", b"\xff\xfe", "prompt: not UTF-8; byte 0"),
    "negative_prompt": ("negative_prompt", b"\xff", "negative_prompt: not UTF-8"),
    "scheduler": ("scheduler", b"ddpm", "scheduler: 'ddpm'; must be one of euler"),
    "output_format": ("output_format", b"bmp", "output_format: 'bmp'; must be one of png, jpeg, webp"),
    "pose_photo": ("pose_photo", b"not a photo", "pose_photo: not a readable image"),
    "photo": ("photo", b"not a photo", "photo[0]: not a readable image; must be JPEG, PNG or WEBP"),
    "photo empty": ("photo", b"", "photo[0]: empty"),
    "photo bomb": ("photo", bomb(), "photo[0]: "),
    "photo large": ("photo", b"\xff" * (contract.MAX_PHOTO_BYTES + 1), "must be at most 16777216 bytes"),
    "photo cut": ("photo", encoded(data.astronaut())[:20000], "photo[0]: damaged PNG file"),
    "photo gif": ("photo", encoded(data.astronaut(), "GIF"), "photo[0]: looks like a GIF file"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_and_photos(raw, astronaut, case):
    name, value, message = TEXTS[case]
    inputs = {"photo": [astronaut], "prompt": [b"x"], name: [value]}
    assert message in refused(raw, [tensor(key, values) for key, values in inputs.items()])


@pytest.mark.parametrize(("name", "value"), [("width", 100), ("width", 320), ("height", 32), ("height", -64)])
def test_sides(raw, astronaut, name, value):
    inputs = [tensor("photo", [astronaut]), tensor("prompt", [b"x"]), tensor(name, [value], "INT32")]
    assert f"{name}: {value}; must be a multiple of 64 within 64..256" in refused(raw, inputs)


def test_what_is_missing_is_named(raw, astronaut):
    assert "photo: missing; is required" in refused(raw, [tensor("prompt", [b"x"])])
    assert "prompt: missing; is required" in refused(raw, [tensor("photo", [astronaut])])
    seed = [tensor("photo", [astronaut]), tensor("seed", [1], "INT64")]
    assert "prompt: missing; is required" in refused(raw, seed)


@pytest.mark.parametrize("count", [0, 5])
def test_number_of_photos(raw, astronaut, count):
    inputs = [tensor("photo", [astronaut] * count), tensor("prompt", [b"x"])]
    assert f"photo: {count} photos; must be 1..4" in refused(raw, inputs)


def test_wrong_shapes_and_types(raw, astronaut):
    photo = tensor("photo", [astronaut])
    assert "'prompt'" in refused(raw, [photo, tensor("prompt", [b"a", b"b"])])
    assert "'prompt'" in refused(raw, [photo, tensor("prompt", [1], "INT32")])
    assert "'seed'" in refused(raw, [photo, tensor("prompt", [b"x"]), tensor("seed", [1], "INT32")])
    assert "'steps'" in refused(raw, [photo, tensor("prompt", [b"x"]), tensor("steps", [1], "INT32")])


def test_windows(client, astronaut):
    with pytest.raises(InvalidArgument, match=r"control_guidance_start: 0\.6; must be less than") as caught:
        client.generate(astronaut, "x", control_guidance_start=0.6, control_guidance_end=0.4)
    assert caught.value.field == "control_guidance_start"


def test_lcm_steps(client, astronaut):
    with pytest.raises(InvalidArgument, match=r"num_inference_steps: 51; must be within 1\.\.50"):
        client.generate(astronaut, "x", scheduler="lcm", num_inference_steps=51)


@pytest.mark.parametrize(
    "parameters", [{"tenant": ""}, {"deadline_ms": "soon"}, {"deadline_ms": -5}, {"priority_level": 9}]
)
def test_parameters(raw, astronaut, parameters):
    (name,) = parameters
    inputs = [tensor("photo", [astronaut]), tensor("prompt", [b"x"])]
    assert f"{name}: " in refused(raw, inputs, parameters=parameters)


def test_no_face_says_which_photo_and_what_was_tried(client, astronaut):
    coffee = encoded(data.coffee())
    for photos, pose, field in (([coffee], None, "photo[0]"), ([astronaut, coffee], None, "photo[1]"),
                                ([astronaut], coffee, "pose_photo")):  # fmt: skip
        options = {"pose_photo": pose} if pose else {}
        with pytest.raises(InvalidArgument) as caught:
            client.generate(photos, "x", **options)
        assert caught.value.field == field
        assert "no face found; needs one clear face" in str(caught.value)


def test_a_face_that_is_too_small(client):
    canvas = np.full((4000, 4000, 3), 127, np.uint8)
    canvas[100:612, 100:612] = data.astronaut()
    with pytest.raises(
        InvalidArgument, match=r"photo\[0\]: (largest face is \d+x\d+ pixels; must be at least 32|no face)"
    ):
        client.generate(encoded(canvas, "JPEG"), "x")


def test_bad_requests_do_not_touch_their_neighbours(client, astronaut):
    def generate(i):
        prompt = "a portrait" if i % 2 else ""
        try:
            return client.generate(astronaut, prompt, num_inference_steps=4, seed=i).seeds[0]
        except InvalidArgument as error:
            return error.field

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(generate, range(8)))
    assert outcomes == ["prompt", 1, "prompt", 3, "prompt", 5, "prompt", 7]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (b'"id": "a\xff"', b"id: not UTF-8; byte 1 cannot be decoded"),
        (b'"parameters": {"tenant": "a\xff"}', b"parameters: not readable; must be UTF-8"),
    ],
)
def test_an_id_or_a_parameter_that_is_not_utf_8(server, place, message):
    body = b'{%s, "inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}' % place
    url = f"http://127.0.0.1:{server.ports.http}/v2/models/intake/infer"
    with pytest.raises(HTTPError) as caught:
        urlopen(Request(url, body), timeout=60)
    assert caught.value.code == 400
    assert message in caught.value.read()


def test_the_server_is_still_well(client, astronaut):
    assert client.generate(astronaut, "a portrait", num_inference_steps=2, seed=3).seeds == (3,)
