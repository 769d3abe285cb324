"""Values are refused by field, value and bound before anything is sent, or arrive exactly as they were given."""

import math
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instantid_client import FakeClient, InvalidArgument, contract

NUMBERS = [option for option in contract.OPTIONS if isinstance(option, contract.Number)]
WHOLE = [option for option in NUMBERS if option.datatype != "FP32"]
TEXTS = [option for option in contract.OPTIONS if isinstance(option, contract.Text)]
CHOICES = [option for option in contract.OPTIONS if isinstance(option, contract.Choice)]
SIDES = [option for option in contract.OPTIONS if isinstance(option, contract.Side)]


def names(options):
    return {"ids": [option.name for option in options]}


def refuse(name, value):
    """The error's text, after it was made sure that nothing was sent."""
    client = FakeClient()
    values = {"photo": b"photo", "prompt": "x", name: value}
    with pytest.raises(InvalidArgument) as caught:
        client.generate(**values)
    assert not client.requests
    assert caught.value.field == name
    assert str(caught.value).startswith(f"{name}: ")
    assert len(str(caught.value)) < 300
    return str(caught.value)


def sent(name, value):
    client = FakeClient()
    client.generate(**{"photo": b"photo", "prompt": "x", name: value})
    return client.requests[0].values[name]


TOO_LARGE = [
    2**31,
    -(2**31) - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    13930481230987123456,
    10**400,
    10**5000,
]
"""Past int32 and int64, seeds of other tools up to 2^64-1, and what Python itself does not print."""


@pytest.mark.parametrize("option", [*NUMBERS, *SIDES], **names([*NUMBERS, *SIDES]))
@pytest.mark.parametrize("value", TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_numbers_past_their_tensor_are_refused(option, value):
    if option.low <= value <= option.high:
        assert sent(option.name, value) == value
    else:
        assert "must be" in refuse(option.name, value)


@pytest.mark.parametrize("option", NUMBERS, **names(NUMBERS))
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "7", b"7", "", True, [1], (1,), {}, 1j, object(), np.array(1)]
)
def test_what_is_no_number_is_refused(option, value):
    refuse(option.name, value)


@pytest.mark.parametrize("option", [*WHOLE, *SIDES], **names([*WHOLE, *SIDES]))
def test_fractions_are_refused_and_whole_floats_are_not(option):
    value = 128 if option in SIDES else max(option.low, 1)
    for same in (float(value), np.float32(value), np.int64(value), np.uint8(value), Fraction(value)):
        assert sent(option.name, same) == value
    assert "whole number" in refuse(option.name, value + 0.5)
    refuse(option.name, Decimal(value))


@pytest.mark.parametrize("option", NUMBERS, **names(NUMBERS))
def test_bounds_are_the_contract_s(option):
    assert sent(option.name, option.low) == option.low
    assert sent(option.name, option.high) == option.high
    step = 1 if option in WHOLE else 1e-6
    for outside in (option.low - step, option.high + step):
        assert option.bound in refuse(option.name, outside)


@pytest.mark.parametrize("option", SIDES, **names(SIDES))
def test_sides_are_multiples_of_64(option):
    assert sent(option.name, 1024) == 1024
    for wrong in (1000, 0, -64, 65):
        assert "multiple of 64" in refuse(option.name, wrong)


@pytest.mark.parametrize("option", TEXTS, **names(TEXTS))
def test_texts(option):
    assert sent(option.name, "ü € 🙂") == "ü € 🙂"
    assert sent(option.name, "a" * option.high) == "a" * option.high
    for wrong in ("a" * (option.high + 1), "a\0b", "\ud800", "a\udfffb", b"bytes", 3, ["a"], object()):
        refuse(option.name, wrong)
    if option.low:
        refuse(option.name, "")
        refuse(option.name, " \n")


@pytest.mark.parametrize("option", CHOICES, **names(CHOICES))
def test_choices_are_listed(option):
    for choice in option.choices:
        assert sent(option.name, choice) == choice
    assert ", ".join(option.choices) in refuse(option.name, "Euler a")
    refuse(option.name, 1)
    refuse(option.name, "\ud800")


def test_a_secret_in_a_prompt_is_not_in_the_error():
    assert "secret" not in refuse("prompt", "secret " * 300)


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers(),
    st.lists(st.integers(), max_size=2), st.decimals(), st.fractions(),
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([option for option in contract.OPTIONS if not isinstance(option, contract.Images)]), ANYTHING)
def test_any_value_arrives_as_it_was_given_or_is_refused(option, value):
    client = FakeClient()
    try:
        client.generate(**{"photo": b"photo", "prompt": "x", option.name: value})
    except InvalidArgument as error:
        assert error.field == option.name  # noqa: PT017 - either is right
        assert not client.requests
        return
    arrived = client.requests[0].values.get(option.name)
    if option.datatype == "FP32" and value is not None:
        assert arrived == np.float32(value)
    else:
        assert arrived == value or (value is None and option.name != "prompt")


def test_printing_an_integer_of_thousands_of_digits_does_not_fail():
    limit = sys.get_int_max_str_digits()
    assert "bits" in refuse("seed", 10 ** (limit + 1))
