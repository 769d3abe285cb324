"""What the pictures mean, on the running server: who is in them, in which pose, before which place.

Strangers to all trainings. Each bound stands between what `python -m build_tools.miniature.meaning` measured with 40
people (docs/miniature.md) and what a part that does nothing would give.
"""

import numpy as np
import pytest

from build_tools.miniature.judge import Judge, auc
from build_tools.miniature.meaning import measure


@pytest.fixture(scope="module")
def findings(client, weights):
    return measure(client, Judge(weights / "face_analysis.onnx"))


def test_a_face_is_in_every_picture(findings):
    assert sum(painted.seen is None for painted in findings.pictures) <= 1


def test_the_same_person_is_closer_than_others_over_prompts_seeds_and_poses(findings):
    assert auc(*findings.cosines) >= 0.95


def test_landmarks_follow_the_pose_photo(findings):
    assert np.mean([painted.pose_error for painted in findings.pictures]) <= 0.06


def test_the_place_is_the_one_in_the_prompt(findings):
    assert findings.right_places >= 0.9


def test_without_the_adapter_the_person_is_lost(findings):
    likeness = findings.likeness([pair[1] for pair in findings.pairs])
    without = findings.likeness(findings.changed["ip_adapter_scale 0"])
    assert without.mean() <= 0.5 * likeness[: len(without)].mean()


def test_without_identitynet_the_pose_is_lost(findings):
    errors = [painted.pose_error for painted in findings.changed["controlnet_conditioning_scale 0"]]
    assert np.mean(errors) >= 0.2


def test_another_seed_paints_another_picture_of_the_same_person(findings):
    others = findings.changed["another seed"]
    apart = [
        np.abs(pair[1].picture.astype(int) - other.picture).mean()
        for pair, other in zip(findings.pairs, others, strict=False)
    ]
    assert min(apart) >= 5
    assert auc(*findings.cosines_changed("another seed")) >= 0.95


def test_two_photos_are_no_worse_than_either(findings):
    first = [pair[1] for pair in findings.pairs]
    second, both = findings.changed["another photo"], findings.changed["both photos"]
    likeness = [findings.likeness(pictures[: len(both)]).mean() for pictures in (first, second, both)]
    assert likeness[2] >= min(likeness[:2])
