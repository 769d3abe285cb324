"""What the pictures mean, on the running server: before which place, whose face, in which pose.

Strangers to all trainings; `python -m build_tools.miniature.meaning` prints the distributions (docs/miniature.md).
"""

import numpy as np
import pytest

from build_tools.miniature.judge import Judge
from build_tools.miniature.meaning import measure


@pytest.fixture(scope="module")
def findings(client, weights):
    return measure(client, Judge(weights / "face_analysis.onnx"), people=10, changed=3)


def test_the_place_is_the_one_in_the_prompt(findings):
    assert findings.right_places >= 0.9


def test_another_seed_paints_another_picture(findings):
    others = findings.changed["another seed"]
    apart = [
        np.abs(pair[1].picture.astype(int) - other.picture).mean()
        for pair, other in zip(findings.pairs, others, strict=False)
    ]
    assert min(apart) >= 2
