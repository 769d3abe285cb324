"""Faces that fill the frame, with the miniature's networks: the same person as in the whole picture."""

import numpy as np
import pytest
from skimage import data

from .scripts import load

load("face_parity")
close_ups = load("close_ups")
ASTRONAUT, compare, portraits = close_ups.ASTRONAUT, close_ups.compare, close_ups.portraits


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    return close_ups.ways(tmp_path_factory.mktemp("faces"))


@pytest.mark.parametrize("pixels", [0, -15])
def test_a_tight_crop_is_no_worse_than_one_in_a_grey_border(looks, pixels):
    box = ASTRONAUT + np.array((-1, -1, 1, 1), np.float32) * pixels
    look = looks["surest, edge"]
    (tight, _), (in_border, _) = (compare(look, data.astronaut(), box, (0,), border)[0] for border in (False, True))
    assert tight >= in_border > 0.45


def test_drawn_close_ups_show_the_right_face(looks):
    rows = {
        name: np.array([compare(looks[name], *portrait, (0.5, -0.08), False) for portrait in portraits(4)])
        for name in ("reference, black", "surest, edge")
    }
    ordinary, tight = rows["surest, edge"].transpose(1, 0, 2)
    assert tight[:, 1].all()
    assert np.median(tight[:, 0]) > np.median(rows["reference, black"][:, 1, 0]) + 0.2
    np.testing.assert_allclose(ordinary, rows["reference, black"][:, 0], atol=0.02)
