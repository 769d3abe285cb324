"""Inputs and parameters that are refused: the message names the field, its value and the bound."""

import numpy as np
import pytest

from instantid import contract
from instantid.errors import Cancelled, InvalidArgument

from .inputs import photo, resolve, take, texts

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


def test_a_passed_deadline_is_not_started():
    with pytest.raises(Cancelled, match="deadline"):
        take({"deadline_ms": 0})
