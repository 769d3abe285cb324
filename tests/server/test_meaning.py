"""What the pictures mean, on the running server: before which place, whose face, in which pose.

Strangers to all trainings. `python -m miniature.meaning` prints the distributions that the thresholds come
from (docs/miniature.md).
"""

import numpy as np
import pytest

from miniature.judge import Judge, auc
from miniature.meaning import measure

PEOPLE, CHANGED = 20, 10


@pytest.fixture(scope="module")
def findings(client, weights):
    return measure(client, Judge(weights / "face_analysis.onnx"), PEOPLE, CHANGED)


def second(findings, count=CHANGED):
    return [pair[1] for pair in findings.pairs[:count]]


def test_a_person_is_the_same_over_prompts_poses_and_seeds(findings):
    assert auc(*findings.cosines) >= 0.95


def test_the_pose_is_the_pose_photo_s(findings):
    assert np.mean([picture.pose_error for picture in findings.pictures]) <= 0.06


def test_the_place_is_the_one_in_the_prompt(findings):
    assert findings.right_places >= 0.95


def test_ip_adapter_scale_0_loses_who_it_is(findings):
    without = findings.likeness(findings.changed["ip_adapter_scale 0"])
    assert without.mean() <= 0.5 * findings.likeness(second(findings)).mean()


def test_controlnet_conditioning_scale_0_loses_the_pose(findings):
    errors = [picture.pose_error for picture in findings.changed["controlnet_conditioning_scale 0"]]
    assert np.median(errors) >= 4 * np.median([picture.pose_error for picture in findings.pictures])


def test_two_photos_are_no_worse_than_either(findings):
    one, other, both = (
        findings.likeness(pictures).mean()
        for pictures in (second(findings), findings.changed["another photo"], findings.changed["both photos"])
    )
    assert both >= min(one, other)


def test_another_seed_paints_another_picture(findings):
    others = findings.changed["another seed"]
    apart = [
        np.abs(picture.picture.astype(int) - other.picture).mean()
        for picture, other in zip(second(findings), others, strict=True)
    ]
    assert min(apart) >= 2
