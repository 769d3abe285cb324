import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from instantid.errors import InvalidArgument, NoUsableFace
from instantid.faces.choice import Faces
from instantid.faces.conditioning import condition
from instantid.faces.landmark_picture import draw_landmarks, place_landmarks
from instantid.photos import PhotoSize
from instantid.request import GenerationRequest

LANDMARKS = np.array([(510.3, 252.9), (615.1, 257.5), (562.8, 320.2), (512.6, 352.1), (607.7, 355.8)], np.float32)


def faces(boxes, photo_index=None, photos=1, embeddings=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    f = len(boxes)
    return Faces(
        boxes,
        np.linspace(0.9, 0.6, f, dtype=np.float32),
        np.stack([LANDMARKS + 10 * i for i in range(f)]) if f else np.zeros((0, 5, 2), np.float32),
        np.arange(f * 512, dtype=np.float32).reshape(f, 512) if embeddings is None else embeddings,
        np.zeros(f, np.int64) if photo_index is None else np.array(photo_index),
        np.full(photos, 640),
    )


def request(photos, has_pose_photo=False, width=1024, height=1024):
    return GenerationRequest(
        prompt="x", width=width, height=height, photos=tuple(photos), has_pose_photo=has_pose_photo
    )


def no_pictures(width=1024, height=1024):
    return np.zeros((0, height, width, 3), np.uint8)


def plain_draw_kps(kps, w, h):
    """The landmark picture re-computed step by step from NUMERICS.md."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    out = np.zeros([h, w, 3])
    for a, b in [(0, 2), (1, 2), (3, 2), (4, 2)]:
        x, y = kps[[a, b]][:, 0], kps[[a, b]][:, 1]
        length = math.hypot(x[0] - x[1], y[0] - y[1])
        angle = math.degrees(math.atan2(y[0] - y[1], x[0] - x[1]))
        centre = (int(np.mean(x)), int(np.mean(y)))
        polygon = cv2.ellipse2Poly(centre, (int(length / 2), 4), int(angle), 0, 360, 1)
        out = cv2.fillConvexPoly(out.copy(), polygon, colours[a])
    out = (out * 0.6).astype(np.uint8)
    for (x, y), colour in zip(kps, colours, strict=True):
        out = cv2.circle(out.copy(), (int(x), int(y)), 10, colour, -1)
    return out


@pytest.mark.parametrize("seed", range(40))
def test_landmark_picture_is_the_reference_s(seed):
    rng = np.random.default_rng(seed)
    landmarks = (LANDMARKS if seed == 0 else rng.uniform(-60, 760, (5, 2))).astype(np.float32)
    np.testing.assert_array_equal(draw_landmarks(landmarks, 704, 640), plain_draw_kps(landmarks, 704, 640))


def test_landmark_picture_is_rgb_with_dimmed_limbs():
    picture = draw_landmarks(LANDMARKS, 1280, 1280)
    assert picture[252, 510].tolist() == [255, 0, 0]
    middle = ((LANDMARKS[0] + LANDMARKS[2]) / 2).astype(int)
    assert picture[middle[1], middle[0]].tolist() == [153, 0, 0]


def test_the_largest_face_by_area_not_the_widest_low_in_the_picture():
    """A lost pair of brackets, `x1 - x0 * y1 - y0`, picks the second of these."""
    tall, wide_and_low = (100, 50, 300, 350), (400, 900, 650, 1000)
    face = faces([wide_and_low, tall]).largest(0, "photo[0]")
    assert face.box.tolist() == list(tall)
    assert face.faces_seen == 2
    np.testing.assert_array_equal(face.landmarks, LANDMARKS + 10)


def test_the_largest_face_beats_the_surest():
    assert faces([(0, 0, 50, 50), (0, 0, 90, 90)]).largest(0, "photo[0]").score == pytest.approx(0.6)


def test_faces_of_other_photos_do_not_count():
    found = faces([(0, 0, 90, 90), (0, 0, 50, 50)], photo_index=[1, 0], photos=2)
    assert found.largest(0, "photo[0]").box[2] == 50


def test_no_face_says_which_photo_and_what_helps():
    with pytest.raises(NoUsableFace, match=r"photo\[1\]: no face found; needs one clear face; a photo that lies on"):
        faces([(0, 0, 90, 90)], photos=2).largest(1, "photo[1]")


def test_a_small_face_is_refused_with_the_bound():
    with pytest.raises(NoUsableFace, match=r"pose_photo: largest face is 31x60 pixels; must be at least 32"):
        faces([(0, 0, 31, 60)]).largest(0, "pose_photo")


def test_placement_of_the_same_size_changes_nothing():
    np.testing.assert_array_equal(place_landmarks(LANDMARKS, (704, 1280), (704, 1280)), LANDMARKS)


def test_placement_never_stretches():
    moved = place_landmarks(LANDMARKS, (960, 1280), (1344, 768))
    before, after = np.ptp(LANDMARKS, axis=0), np.ptp(moved, axis=0)
    np.testing.assert_allclose(after / before, 0.6, rtol=1e-4)
    centre = place_landmarks(np.array([[480, 640]], np.float32), (960, 1280), (1344, 768))
    np.testing.assert_allclose(centre, [[672, 384]])


def test_embedding_is_the_mean_of_the_raw_ones():
    embeddings = np.stack([np.full(512, 30.0), np.full(512, 2.0), np.full(512, 1.0)]).astype(np.float32)
    sizes = [PhotoSize(640, 640, 1280, 1280)] * 3
    found = faces([(0, 0, 90, 90)] * 3, [0, 1, 2], 3, embeddings)
    result = condition(request(sizes, has_pose_photo=True), found, no_pictures())
    np.testing.assert_array_equal(result.embeddings, np.full((1, 512), 16.0, np.float32))
    assert result.embeddings.dtype == np.float32


def test_pose_photo_gives_the_landmarks_and_the_report_is_in_its_own_pixels():
    sizes = [PhotoSize(640, 640, 1280, 1280), PhotoSize(320, 640, 640, 1280)]
    found = faces([(0, 0, 90, 90), (10, 20, 110, 220)], [0, 1], 2)
    result = condition(request(sizes, has_pose_photo=True, width=640, height=1280), found, no_pictures(640, 1280))
    np.testing.assert_array_equal(result.pictures, draw_landmarks(LANDMARKS + 10, 640, 1280)[None])
    report = json.loads(result.report)
    assert report["box"] == [5.0, 10.0, 55.0, 110.0]
    assert report["photo_index"] == 1
    assert [photo["photo_index"] for photo in report["photos"]] == [0]
    np.testing.assert_allclose(report["photos"][0]["landmarks"], LANDMARKS / 2, atol=0.01)


def test_notes_on_a_photo_are_in_the_report():
    noted = PhotoSize(640, 640, 1280, 1280, ("unusable colour profile ignored",))
    found = faces([(0, 0, 90, 90)] * 2, [0, 1], 2)
    report = json.loads(condition(request([noted, PhotoSize(640, 640, 1280, 1280)]), found, no_pictures()).report)
    assert [photo["notes"] for photo in report["photos"]] == [["unusable colour profile ignored"], []]


def test_the_landmark_picture_follows_the_pictures_of_the_request():
    wanted = replace(request([PhotoSize(640, 640, 1280, 1280)]), pictures=("landmarks", "landmarks"))
    given = np.full((1, 1024, 1024, 3), 7, np.uint8)
    pictures = condition(wanted, faces([(0, 0, 90, 90)]), given).pictures
    assert pictures.shape == (2, 1024, 1024, 3)
    assert (pictures[0] == 7).all()
    np.testing.assert_array_equal(
        pictures[1], draw_landmarks(place_landmarks(LANDMARKS, (1280, 1280), (1024, 1024)), 1024, 1024)
    )


@pytest.mark.parametrize("shape", [(1, 1024, 1024, 3), (0, 512, 1024, 3), (0, 1024, 1024)])
def test_pictures_that_are_not_the_requests_are_refused(shape):
    with pytest.raises(InvalidArgument, match=r"input_pictures: shape .*; must be \[0, 1024, 1024, 3\]"):
        condition(request([PhotoSize(640, 640, 1280, 1280)]), faces([(0, 0, 90, 90)]), np.zeros(shape, np.uint8))


@pytest.mark.parametrize("has_pose_photo", [False, True])
def test_a_request_without_a_photo_of_the_person_is_refused(has_pose_photo):
    photos = [PhotoSize(640, 640, 1280, 1280)] * has_pose_photo
    with pytest.raises(InvalidArgument, match=r"request\.photos: [01] photos; must hold one of the person"):
        condition(request(photos, has_pose_photo), faces([(0, 0, 90, 90)]), no_pictures())
