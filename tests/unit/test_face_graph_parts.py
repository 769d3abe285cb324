"""Parts of the face graph against cv2 and scikit-image."""

import cv2
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from skimage.transform import SimilarityTransform

from build_tools.face_graph.alignment import TEMPLATE, Similarity, similarity, warp
from build_tools.face_graph.letterbox import letterbox
from build_tools.face_graph.ops import OPSET, Graph
from instantid.contract import CANVAS

PHOTOS = [
    ("images", TensorProto.UINT8, ["n", CANVAS, CANVAS, 3]),
    ("sizes", TensorProto.INT64, ["n", 2]),
]
FACTORS = ("cosine", "sine", "x_shift", "y_shift")


def session(graph: Graph, inputs: list, outputs: list) -> onnxruntime.InferenceSession:
    proto = graph.proto("part", inputs, outputs)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def letterbox_session() -> onnxruntime.InferenceSession:
    graph = Graph()
    result = letterbox(graph, "images", "sizes", "photo", "side")
    graph.op("Identity", result.blob, name="blob")
    graph.op("Identity", result.scale, name="scale")
    inputs = [*PHOTOS, ("photo", TensorProto.INT64, []), ("side", TensorProto.INT64, [])]
    return session(graph, inputs, [("blob", TensorProto.FLOAT, [1, 3, None, None]), ("scale", TensorProto.FLOAT, [])])


@pytest.fixture(scope="module")
def similarity_session() -> onnxruntime.InferenceSession:
    graph = Graph()
    result = similarity(graph, "landmarks")
    for name in FACTORS:
        graph.op("Identity", getattr(result, name), name=name)
    outputs = [(name, TensorProto.DOUBLE, ["f"]) for name in FACTORS]
    return session(graph, [("landmarks", TensorProto.FLOAT, ["f", 5, 2])], outputs)


def warp_session(border: str) -> onnxruntime.InferenceSession:
    graph = Graph()
    crops = warp(graph, "images", "sizes", "photo_index", Similarity(*FACTORS), border)
    graph.op("Identity", crops, name="crops")
    factors = [(name, TensorProto.DOUBLE, ["f"]) for name in FACTORS]
    inputs = [*PHOTOS, ("photo_index", TensorProto.INT64, ["f"]), *factors]
    return session(graph, inputs, [("crops", TensorProto.FLOAT, ["f", 3, 112, 112])])


def insightface_blob(photo: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """`SCRFD._detect_candidates` and `_prepare_input_blob`, with cv2's own functions."""
    height, width = photo.shape[:2]
    if height > width:
        new_height, new_width = side, int(side / (height / width))
    else:
        new_height, new_width = int(side * (height / width)), side
    square = np.zeros((side, side, 3), np.uint8)
    square[:new_height, :new_width] = cv2.resize(photo, (new_width, new_height))
    blob = cv2.dnn.blobFromImage(square, 1 / 128, (side, side), (127.5, 127.5, 127.5))
    return blob, new_height / height


def canvas(*photos: np.ndarray) -> dict[str, np.ndarray]:
    images = np.full((len(photos), CANVAS, CANVAS, 3), 77, np.uint8)
    for image, photo in zip(images, photos, strict=True):
        image[: photo.shape[0], : photo.shape[1]] = photo
    return {"images": images, "sizes": np.array([photo.shape[:2] for photo in photos], np.int64)}


SIZES = [(1280, 1280), (832, 1280), (1280, 640), (1279, 641), (640, 640), (100, 37), (1280, 16), (513, 1280), (16, 128)]


@pytest.mark.parametrize("side", [640, 128])
@pytest.mark.parametrize("size", SIZES)
def test_letterbox_is_bit_equal_to_cv2(letterbox_session, size, side):
    photo = np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)
    feeds = {**canvas(np.zeros((9, 9, 3), np.uint8), photo), "photo": np.array(1), "side": np.array(side)}
    blob, scale = letterbox_session.run(None, feeds)
    expected, expected_scale = insightface_blob(photo, side)
    np.testing.assert_array_equal(blob, expected)
    assert scale == np.float32(expected_scale)


def random_landmarks(rng: np.random.Generator, faces: int) -> np.ndarray:
    """Template landmarks turned, scaled, moved and shaken; one in three mirrored, which no similarity undoes."""
    angle, scale = rng.uniform(-np.pi, np.pi, faces), rng.uniform(0.1, 8, faces)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    points = (TEMPLATE - 56) @ turn * scale[:, None, None] + rng.uniform(0, CANVAS, (faces, 1, 2))
    points += rng.normal(0, 2, points.shape) * scale[:, None, None]
    points[::3] *= [-1, 1]
    return points.astype(np.float32)


def test_similarity_equals_scikit_image(similarity_session):
    landmarks = random_landmarks(np.random.default_rng(3), 300)
    results = np.stack(similarity_session.run(None, {"landmarks": landmarks}), axis=1)
    for points, (cosine, sine, x_shift, y_shift) in zip(landmarks, results, strict=True):
        expected = SimilarityTransform.from_estimate(points.astype(float), TEMPLATE.astype(float)).params
        ours = np.array([[cosine, -sine, x_shift], [sine, cosine, y_shift], [0, 0, 1]])
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("border", "mode"), [("black", cv2.BORDER_CONSTANT), ("edge", cv2.BORDER_REPLICATE)])
def test_warp_is_bit_equal_to_cv2(border, mode):
    rng = np.random.default_rng(4)
    photos = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((1280, 960), (200, 333), (60, 1280))]
    landmarks = random_landmarks(rng, 90)
    transforms = [SimilarityTransform.from_estimate(p.astype(float), TEMPLATE.astype(float)).params for p in landmarks]
    photo_index = np.arange(len(transforms)) % len(photos)
    values = np.array([(m[0, 0], m[1, 0], m[0, 2], m[1, 2]) for m in transforms])
    factors = dict(zip(FACTORS, values.T.copy(), strict=True))
    (crops,) = warp_session(border).run(None, {**canvas(*photos), "photo_index": photo_index, **factors})
    for crop, matrix, index in zip(crops, transforms, photo_index, strict=True):
        expected = cv2.warpAffine(photos[index], matrix[:2], (112, 112), borderMode=mode)
        np.testing.assert_array_equal(crop, expected.transpose(2, 0, 1))
    assert crops.any(axis=(1, 2, 3)).sum() > len(crops) // 3


def test_faces_without_extent_give_an_empty_crop_not_an_error():
    nothing = {name: np.array([np.nan, 0.0]) for name in FACTORS}
    photo = np.full((50, 50, 3), 9, np.uint8)
    (crops,) = warp_session("black").run(None, {**canvas(photo), "photo_index": np.zeros(2, np.int64), **nothing})
    assert not crops.any()
