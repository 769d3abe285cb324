"""A request as JSON: what later stages take from whoever reaches the port, and what they refuse."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instantid.errors import InvalidArgument
from instantid.profile import SDXL, Profile
from instantid.request import GenerationRequest

PROFILE = Profile("full", **SDXL)
VALID = json.loads(GenerationRequest(prompt="x", width=64, height=64).to_json())
PHOTO = {"width": 512, "height": 512, "resized_width": 1280, "resized_height": 1280}
FORGED = {
    "seed": ["1", 1.5, True, None, -1, 2**53, 10**400],
    "guidance_scale": ["5", True, 0.9, 10**400, math.nan, math.inf],
    "prompt": [None, 5, "", "a\0", "half a \ud83d", "a" * 2001],
    "scheduler": ["ddpm", ["euler"], None],
    "width": [65, 0, 8192, "64", 64.0],
    "tenant": ["", 7],
    "priority_level": [0, 4],
    "num_images_per_prompt": [0, 10**9],
    "control_guidance_start": [1.0],
    "photos": [
        5,
        [5],
        [{}],
        [{**PHOTO, "resized_width": 0}],
        [{**PHOTO, "width": "512"}],
        [{**PHOTO, "more": 1}],
        [PHOTO] * 6,
    ],
    "has_pose_photo": [1, "false", None],
    "pictures": ["landmarks", ["depth"], None],
    "request_id": [None, 5],
    "deadline": ["soon", math.inf, True],
    "another_field": [1],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in FORGED.items() for value in values])
def test_a_forged_request_names_the_field(field, value):
    with pytest.raises(InvalidArgument, match=field):
        GenerationRequest.from_json(json.dumps({**VALID, field: value}).encode())


@pytest.mark.parametrize("field", VALID)
def test_a_request_without_a_field_is_refused(field):
    text = json.dumps({name: value for name, value in VALID.items() if name != field}).encode()
    with pytest.raises(InvalidArgument, match=field):
        GenerationRequest.from_json(text)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers() | st.text())


@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"seed":' + b"9" * 5000 + b"}")
def test_what_is_no_request_is_refused(text):
    with pytest.raises(InvalidArgument, match="request"):
        GenerationRequest.from_json(text)


@given(st.sampled_from(sorted(VALID)), VALUES)
def test_any_value_of_a_field_is_taken_or_refused(field, value):
    try:
        request = GenerationRequest.from_json(json.dumps({**VALID, field: value}).encode())
    except InvalidArgument:
        return
    assert GenerationRequest.from_json(request.to_json()) == request
    assert getattr(request, field) == (tuple(value) if isinstance(value, list) else value)


def test_the_weights_bounds_hold_for_json_too():
    text = GenerationRequest(prompt="x", width=1536, height=1536).to_json()
    assert GenerationRequest.from_json(text).width == 1536
    with pytest.raises(InvalidArgument, match="width, height: 1536x1536"):
        GenerationRequest.from_json(text, PROFILE)
    small = GenerationRequest(prompt="x", width=64, height=64).to_json()
    with pytest.raises(InvalidArgument, match=r"width: 64; must be a multiple of 64 within 512\.\.1536"):
        GenerationRequest.from_json(small, PROFILE)
