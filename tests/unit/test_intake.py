import io
import time
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from instantid import contract
from instantid.errors import Cancelled, InvalidArgument
from instantid.profile import FEW_STEPS, SDXL, Profile
from instantid.request import GenerationRequest, fill_sides, read_request
from instantid.settings import Settings

PROFILE = Profile("full", **SDXL)


def photo(width=64, height=64, value=128):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def texts(*values):
    return np.array(values, object)


def take(parameters=None, mode="none", **changes):
    inputs = {"photo": texts(photo()), "prompt": texts(b"a portrait"), **changes}
    return read_request(inputs, parameters or {}, Profile("full", **SDXL, **FEW_STEPS[mode]), "id-1")


def resolve(parameters=None, mode="none", **changes):
    return take(parameters, mode, **changes)[0]


def test_defaults_are_the_contracts():
    request = resolve()
    for number in contract.NUMBERS:
        if number.default is not None:
            assert getattr(request, number.name) == number.default
    assert (request.width, request.height, request.scheduler) == (1024, 1024, "euler")
    assert request.tenant == contract.TENANT.default
    assert 0 <= request.seed < 2**32


def test_seeds_are_drawn_anew():
    assert len({resolve().seed for _ in range(8)}) == 8


def test_an_explicit_default_is_the_default():
    explicit = resolve(seed=np.array([1]), ip_adapter_scale=np.array([0.8], np.float32))
    assert explicit == resolve(seed=np.array([1]))


def test_the_request_survives_json():
    request = resolve({"deadline_ms": 5000}, prompt=texts("Grüße, 世界".encode()))
    assert GenerationRequest.from_json(request.to_json()) == request


def test_photos_lie_in_the_corner_of_their_canvas():
    request, canvases = take(photo=texts(photo(30, 40, 10), photo(40, 30, 20)), pose_photo=texts(photo(64, 64, 30)))
    assert canvases.images.shape == (3, 1280, 1280, 3)
    assert canvases.sizes.tolist() == [[1280, 960], [960, 1280], [1280, 1280]]
    for canvas, (height, width), value in zip(canvases.images, canvases.sizes, (10, 20, 30), strict=True):
        assert (canvas[:height, :width, 0] == value).all()
        assert canvas[height:].sum() + canvas[:, width:].sum() == 0
    assert request.has_pose_photo
    assert request.photos == canvases.photos


@pytest.mark.parametrize(
    ("width", "height", "aspect", "expected"),
    [
        (None, None, 1, (1024, 1024)),
        (None, None, 1080 / 1920, (768, 1344)),
        (512, None, 0.5, (512, 1024)),
        (None, 1280, 2, (1536, 1280)),
        (1280, 704, 1, (1280, 704)),
    ],
)
def test_sizes_follow_the_photo(width, height, aspect, expected):
    assert fill_sides(width, height, aspect, PROFILE) == expected


@given(st.integers(16, 9000), st.floats(0.125, 8))
def test_default_sizes_are_always_paintable(width, aspect):
    w, h = fill_sides(None, None, width / max(16, round(width / aspect)), PROFILE)
    assert w % 64 == h % 64 == 0
    assert PROFILE.min_side <= min(w, h)
    assert max(w, h) <= PROFILE.max_side
    assert w * h <= PROFILE.max_area


def test_the_size_follows_the_pose_photo():
    request = resolve(photo=texts(photo(64, 64)), pose_photo=texts(photo(100, 200)))
    assert request.width < request.height


NUMBER_FAULTS = [
    (number.name, value)
    for number in contract.NUMBERS
    for value in (
        [number.low - 1, number.high + 1] if number.datatype != "FP32" else
        [number.low - 0.1, number.high + 0.1, np.nan, np.inf, -np.inf]
    )
]  # fmt: skip
TYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


@pytest.mark.parametrize(("name", "value"), NUMBER_FAULTS)
def test_numbers_out_of_bounds(name, value):
    (number,) = (n for n in contract.NUMBERS if n.name == name)
    with pytest.raises(InvalidArgument) as caught:
        take(**{name: np.array([value], TYPES[number.datatype])})
    assert str(caught.value).startswith(f"{name}: ")
    assert number.bound in str(caught.value)


@pytest.mark.parametrize("number", contract.NUMBERS, ids=lambda n: n.name)
def test_numbers_on_the_bounds(number):
    other = {"control_guidance_start": "low", "control_guidance_end": "high"}
    for end in (other[number.name],) if number.name in other else ("low", "high"):
        value = getattr(number, end)
        request = resolve(**{number.name: np.array([value], TYPES[number.datatype])})
        assert getattr(request, number.name) == value


FAULTS = {
    "no photo": ({"photo": None}, "photo: missing"),
    "no photos": ({"photo": texts()}, "photo: 0 photos; must be 1..4"),
    "five photos": ({"photo": texts(*[photo()] * 5)}, "photo: 5 photos; must be 1..4"),
    "no prompt": ({"prompt": None}, "prompt: missing"),
    "empty prompt": ({"prompt": texts(b"")}, "prompt: 0 characters; must have 1..2000"),
    "blank prompt": ({"prompt": texts(b"  ")}, "prompt: 2 characters"),
    "long prompt": ({"prompt": texts(b"a" * 2001)}, "prompt: 2001 characters; must have 1..2000"),
    "prompt not text": ({"prompt": texts(b"a\xff")}, "prompt: not UTF-8; byte 1"),
    "NUL": ({"prompt": texts(b"a\0b")}, "prompt: holds a NUL"),
    "negative not text": ({"negative_prompt": texts(b"\xc3")}, "negative_prompt: not UTF-8"),
    "scheduler": ({"scheduler": texts(b"eular")}, "scheduler: 'eular'; must be one of euler, euler_ancestral"),
    "format": ({"output_format": texts(b"gif")}, "output_format: 'gif'; must be one of png, jpeg, webp"),
    "width": ({"width": np.array([1000], np.int32)}, "width: 1000; must be a multiple of 64 within 512..1536"),
    "height": ({"height": np.array([1600], np.int32)}, "height: 1600; must be a multiple of 64"),
    "area": (
        {"width": np.array([1536], np.int32), "height": np.array([1536], np.int32)},
        "width, height: 1536x1536; must be at most 2097152",
    ),
    "window": (
        {
            "control_guidance_start": np.array([0.5], np.float32),
            "control_guidance_end": np.array([0.5], np.float32),
        },
        "control_guidance_start: 0.5; must be less than control_guidance_end, 0.5",
    ),
    "lcm": (
        {"scheduler": texts(b"lcm"), "num_inference_steps": np.array([51], np.int32)},
        "num_inference_steps: 51; must be within 1..50 with the scheduler lcm",
    ),
    "width not a number": ({"width": np.array([64.0], np.float32)}, "width: float32; must be INT32"),
    "steps of another type": ({"num_inference_steps": np.array([8])}, "num_inference_steps: int64; must be INT32"),
    "scale of another type": ({"guidance_scale": np.array([8.0])}, "guidance_scale: float64; must be FP32"),
    "two seeds": ({"seed": np.array([1, 2])}, r"seed: shape \[2\]; must be \[1\]"),
    "prompt no bytes": ({"prompt": texts("x")}, "prompt: str; must be BYTES"),
    "photo no bytes": ({"photo": texts("x")}, r"photo\[0\]: str; must be BYTES"),
    "two pose photos": ({"pose_photo": texts(photo(), photo())}, "pose_photo: 2 photos; must be 1"),
    "second photo": ({"photo": texts(photo(), b"x")}, r"photo\[1\]: not a readable image"),
    "pose photo": ({"pose_photo": texts(b"x")}, "pose_photo: not a readable image"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_field_value_and_bound(name):
    changes, message = FAULTS[name]
    with pytest.raises(InvalidArgument, match=message):
        take(**changes)


@pytest.mark.parametrize(("mode", "expected"), [("hyper", ("ddim", 8, 5.0)), ("lcm", ("lcm", 8, 1.0))])
def test_defaults_follow_the_few_step_mode(mode, expected):
    request = resolve(mode=mode)
    assert (request.scheduler, request.num_inference_steps, request.guidance_scale) == expected


def test_settings_know_every_few_step_mode():
    assert get_args(Settings.model_fields["few_steps"].annotation) == tuple(FEW_STEPS)


@pytest.mark.parametrize("mode", FEW_STEPS)
def test_few_step_modes_are_within_the_contract(mode):
    profile = Profile("full", **SDXL, **FEW_STEPS[mode])
    assert set(profile.schedulers) <= set(contract.SCHEDULERS)
    for own, general in zip(profile.options, contract.OPTIONS, strict=True):
        assert own.name == general.name
        if isinstance(own, contract.Number):
            assert general.low <= own.low <= own.high <= general.high
            assert own.default is None or own.low <= own.default <= own.high


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("hyper", {"num_inference_steps": np.array([30], np.int32)}, "num_inference_steps: 30; must be within 4..16"),
        ("hyper", {"scheduler": texts(b"euler")}, "scheduler: 'euler'; must be one of ddim"),
        ("lcm", {"guidance_scale": np.array([5], np.float32)}, "guidance_scale: 5.0; must be within 1..2"),
        ("lcm", {"num_inference_steps": np.array([1], np.int32)}, "num_inference_steps: 1; must be within 2..12"),
    ],
)
def test_bounds_follow_the_few_step_mode(mode, changes, message):
    with pytest.raises(InvalidArgument, match=message):
        take(mode=mode, **changes)


@pytest.mark.parametrize(
    "parameters",
    [
        {"tenant": ""},
        {"tenant": "half a \ud83d"},
        {"tenant": 5},
        {"tenant": "a" * 129},
        {"deadline_ms": -1},
        {"deadline_ms": "soon"},
        {"deadline_ms": True},
        {"priority_level": 4},
        {"priority_level": float("inf")},
        {"priority_level": False},
        {"priority_level": 1.0},
    ],
)
def test_parameters_out_of_bounds(parameters):
    (name,) = parameters
    with pytest.raises(InvalidArgument, match=f"{name}: "):
        take(parameters)


def test_parameters_as_a_header_brings_them():
    request = resolve({"tenant": "acme", "deadline_ms": "60000", "priority_level": "1"})
    assert (request.tenant, request.priority_level) == ("acme", 1)
    assert 30 < request.deadline - time.monotonic() <= 60


def test_priority_0_is_the_default():
    assert resolve({"priority_level": 0}).priority_level == contract.PRIORITY_LEVEL.default


def test_a_passed_deadline_is_not_started():
    with pytest.raises(Cancelled, match="deadline"):
        take({"deadline_ms": 0})


def test_the_picture_s_parameters_hold_nothing_private():
    public = resolve({"tenant": "acme"}, photo=texts(encode_astronaut())).public(7)
    assert public["seed"] == 7
    assert not {"photos", "tenant", "request_id", "deadline"} & set(public)


def encode_astronaut():
    buffer = io.BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "JPEG")
    return buffer.getvalue()
