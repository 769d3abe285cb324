"""What every scheduler paints with the miniature's networks: a picture, and the same one with more steps."""

import pytest

from instantid import contract
from instantid.models.sdxl.schedules import (
    SAMPLING,
)
from miniature import trained

from .painting import (
    STOCHASTIC,
    Portrait,
    paint,
)
from .reference import Reference


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniature")
    trained.write_trained_sdxl(folder / "sdxl")
    trained.write_trained_identitynet(folder / "identitynet")
    trained.write_trained_adapter(folder / "adapter")
    return Reference(folder)


@pytest.fixture(scope="module")
def portrait(miniature):
    return Portrait(miniature, "unipc", 50)


@pytest.fixture(scope="module")
def converged_portrait(miniature):
    return Portrait(miniature, "euler", 400)


def check_picture(portrait, name, steps):
    """38 dB from the picture that it leads to; with noise of its own, a picture that the networks paint again."""
    latents = paint(name, portrait.config, steps, portrait.predict, portrait.shape)
    if name in STOCHASTIC:
        assert portrait.returns(latents) > portrait.home - 1
    else:
        assert portrait.psnr(latents, portrait.latents) > 38


@pytest.mark.parametrize("name", contract.SCHEDULERS)
def test_the_miniature_paints(portrait, name):
    check_picture(portrait, name, 12 if name == "heun" else 20)


@pytest.mark.long
@pytest.mark.parametrize("steps", [30, 50, 100])
@pytest.mark.parametrize("name", contract.SCHEDULERS)
def test_the_miniature_s_picture_converges(converged_portrait, name, steps):
    check_picture(converged_portrait, name, min(steps, contract.LCM_MAX_STEPS) if name == "lcm" else steps)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ddim", "lcm"])
def test_a_clipped_picture_fails_both_measures(portrait, monkeypatch, name):
    monkeypatch.setitem(SAMPLING, "clip_sample", True)
    latents = paint(name, portrait.config, 20, portrait.predict, portrait.shape)
    assert portrait.psnr(latents, portrait.latents) < 20
    assert portrait.returns(latents) < portrait.home - 2
