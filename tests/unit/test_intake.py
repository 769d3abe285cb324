"""What a request becomes at the intake: defaults, sizes, photos on their canvases, parameters."""

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
from instantid.profile import FEW_STEPS, SDXL, Profile
from instantid.request import GenerationRequest, fill_sides
from instantid.settings import Settings

from .inputs import PROFILE, photo, resolve, take, texts


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


def test_parameters_as_a_header_brings_them():
    request = resolve({"tenant": "acme", "deadline_ms": "60000", "priority_level": "1"})
    assert (request.tenant, request.priority_level) == ("acme", 1)
    assert 30 < request.deadline - time.monotonic() <= 60


def test_priority_0_is_the_default():
    assert resolve({"priority_level": 0}).priority_level == contract.PRIORITY_LEVEL.default


def test_the_picture_s_parameters_hold_nothing_private():
    public = resolve({"tenant": "acme"}, photo=texts(encode_astronaut())).public(7)
    assert public["seed"] == 7
    assert not {"photos", "tenant", "request_id", "deadline"} & set(public)


def encode_astronaut():
    buffer = io.BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "JPEG")
    return buffer.getvalue()
