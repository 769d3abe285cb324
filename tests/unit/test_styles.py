"""Styles: those built in, files of one's own, and what they do to both prompts."""

import pytest

from instantid.errors import InvalidArgument
from instantid.profile import SDXL, Profile, load_profile
from instantid.request import GenerationRequest, read_request
from instantid.styles import load_styles

from .inputs import photo, texts


def take(profile, **inputs):
    inputs = {"photo": texts(photo()), **{name: texts(value.encode()) for name, value in inputs.items()}}
    return read_request(inputs, {}, profile)[0]


@pytest.fixture
def styled(tmp_path):
    (tmp_path / "styles.toml").write_text(
        '["Oil Paint"]\nprompt = "oil, {prompt}, canvas"\nnegative_prompt = "photo"\n[Snow]\nprompt = "{prompt}, ice"\n'
    )
    return Profile("full", **SDXL, styles=load_styles(tmp_path / "styles.toml"))


def test_the_reference_s_eight_styles_are_built_in():
    names = ["Watercolor", "Film Noir", "Neon", "Jungle", "Mars", "Vibrant Color", "Snow", "Line art"]
    assert [style.name for style in load_styles()] == names


def test_a_style_goes_around_both_prompts(styled):
    request = take(styled, prompt="a knight", negative_prompt="blurry", style="Oil Paint")
    assert (request.prompt, request.negative_prompt) == ("oil, a knight, canvas", "photo, blurry")
    again = take(styled, prompt=request.public(1)["prompt"], style=request.public(1)["style"])
    assert again.prompt == request.prompt, "what a picture says of itself makes it again"
    own = take(styled, prompt="a knight", style="Snow")
    assert (own.prompt, own.negative_prompt) == ("a knight, ice", "")
    assert take(styled, prompt="a {prompt}").prompt == "a {prompt}"


def test_an_unknown_style_lists_those_there_are(styled):
    with pytest.raises(InvalidArgument, match=r"style: 'Oil'; must be one of none, Watercolor, .*, Oil Paint"):
        take(styled, prompt="a knight", style="Oil")


def test_a_prompt_that_its_style_makes_too_long_is_refused(styled):
    with pytest.raises(InvalidArgument, match="prompt: 2013 characters"):
        take(styled, prompt="x" * 2000, style="Oil Paint")


def test_inner_models_take_no_style(styled, tmp_path):
    styled.save(tmp_path)
    text = GenerationRequest(prompt="x", width=512, height=512, style="Snow").to_json()
    with pytest.raises(InvalidArgument, match="style: 'Snow'; must be one of none"):
        GenerationRequest.from_json(text, load_profile(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "[Oil]\nprompt = 'oil'",
        "[Oil]\nnegative_prompt = 'x'",
        "[Oil]\nprompt = '{prompt} {prompt}'",
        "[Oil]\nprompt = '{prompt}'\ncolour = 'x'",
        "[none]\nprompt = '{prompt}'",
        "Oil = '{prompt}'",
        "[Oil",
        f"[{'x' * 65}]\nprompt = '{{prompt}}'",
    ],
)
def test_a_file_of_styles_that_is_wrong_is_named(tmp_path, text):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ValueError, match=r"own\.toml"):
        load_styles(tmp_path / "own.toml")
