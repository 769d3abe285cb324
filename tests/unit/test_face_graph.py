"""The whole face graph against insightface on the same files, with small networks that find bright discs."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from build_tools.face_graph import FaceModelError, build_face_graph

from .scripts import load
from .small_faces import DiscDetector, SmallRecogniser, export

parity = load("face_parity")
CPU = ["CPUExecutionProvider"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    export(DiscDetector(), torch.zeros(1, 3, 640, 640), folder / "detector.onnx", 9)
    export(SmallRecogniser(), torch.zeros(1, 3, 112, 112), folder / "recogniser.onnx", 1)
    build_face_graph(folder / "detector.onnx", folder / "recogniser.onnx", folder / "fused.onnx")
    return folder


@pytest.fixture(scope="module")
def graph(folder) -> parity.FusedGraph:
    return parity.FusedGraph(folder / "fused.onnx", CPU, 2)


@pytest.fixture(scope="module")
def reference(folder) -> parity.Insightface:
    (folder / "reference").mkdir()
    return parity.Insightface(folder / "detector.onnx", folder / "recogniser.onnx", folder / "reference", CPU, 2)


def discs(size: tuple[int, int], count: int, seed: int, radius: float | None = None) -> np.ndarray:
    """Discs on dark noise; the radius, as a share of the longer side, is by default what the detector finds at 640."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 30, (*size, 3), np.uint8)
    for _ in range(count):
        share = radius or rng.uniform(0.012, 0.02)
        centre = (int(rng.integers(0, size[1])), int(rng.integers(0, size[0])))
        cv2.circle(picture, centre, max(2, round(share * max(size))), tuple(rng.integers(225, 255, 3).tolist()), -1)
    return picture


SIZES = [(1280, 1280), (832, 1280), (1280, 700), (640, 640), (300, 451), (97, 1280), (1111, 60)]


def test_same_faces_as_insightface(graph, reference):
    total = parity.Differences()
    for seed, size in enumerate(SIZES * 2):
        picture = discs(size, 1 + 3 * (seed % 5), seed)
        total.add(graph.find(picture), reference.find(picture), threshold=0.5)
    assert (total.missed, total.extra, total.other_largest) == (0, 0, 0)
    assert len(total.cosines) > 60
    assert max(total.boxes + total.landmarks) < 0.5
    assert min(total.cosines) > 0.9999


def test_best_score_first_as_in_insightface(graph, reference):
    ours, theirs = (side.find(discs((832, 1280), 12, 5)) for side in (graph, reference))
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.01)
    assert np.all(np.diff(ours.scores) <= 0)


def test_second_size_where_the_first_finds_nothing(graph, reference):
    close, ordinary, empty = discs((1280, 1280), 1, 8, radius=0.078), discs((960, 1280), 4, 3), discs((640, 1280), 0, 1)
    outputs = graph.run(*parity.on_canvas([close, ordinary, empty]))
    assert outputs["detection_size"].tolist() == [128, 640, 0]
    theirs = [reference.find(picture) for picture in (close, ordinary, empty)]
    assert [found.detection_size for found in theirs] == [128, 640, 0]
    total = parity.Differences()
    total.add(parity.photo_faces(outputs, 0), theirs[0], 0.5)
    assert total.cosines
    assert max(total.boxes) < 0.5


def two_kinds() -> np.ndarray:
    """A close-up that only 128 sees, and a dimmer disc in it that only 640 sees."""
    picture = discs((1280, 1280), 1, 8, radius=0.078)
    cv2.circle(picture, (150, 1130), 20, (205, 205, 205), -1)
    return picture


@pytest.mark.parametrize(("detection", "sizes"), [("surest", [128, 640, 0]), ("reference", [640, 640, 0])])
def test_the_size_that_counts(folder, tmp_path, detection, sizes):
    build_face_graph(folder / "detector.onnx", folder / "recogniser.onnx", tmp_path / "fused.onnx", detection=detection)
    (tmp_path / "reference").mkdir()
    paths = folder / "detector.onnx", folder / "recogniser.onnx", tmp_path / "reference"
    theirs = parity.Insightface(*paths, CPU, 2, detection)
    photos = [two_kinds(), discs((960, 1280), 4, 3), discs((640, 1280), 0, 1)]
    outputs, total = (
        parity.FusedGraph(tmp_path / "fused.onnx", CPU, 2).run(*parity.on_canvas(photos)),
        parity.Differences(),
    )
    assert outputs["detection_size"].tolist() == sizes
    for i, photo in enumerate(photos):
        expected = theirs.find(photo)
        assert expected.detection_size == sizes[i]
        total.add(parity.photo_faces(outputs, i), expected, 0.5)
    assert (total.missed, total.extra, total.other_largest) == (0, 0, 0)
    assert len(total.cosines) > 2
    assert max(total.boxes) < 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_many_photos_equal_one_by_one(graph, count):
    photos = [discs(SIZES[i], (0, 3, 9, 1, 5)[i], seed=i) for i in range(count)]
    together = graph.run(*parity.on_canvas(photos))
    assert together["detection_size"].shape == (count,)
    for i, photo in enumerate(photos):
        alone, part = graph.find(photo), parity.photo_faces(together, i)
        np.testing.assert_array_equal(part.boxes, alone.boxes)
        np.testing.assert_allclose(part.embeddings, alone.embeddings, rtol=1e-4, atol=1e-4)


def test_no_photos_and_no_faces_give_empty_outputs(graph):
    for photos in ([], [discs((400, 640), 0, 1)]):
        outputs = graph.run(*parity.on_canvas(photos))
        shapes = [outputs[name].shape for name in ("boxes", "scores", "landmarks", "embeddings", "photo_index")]
        assert shapes == [(0, 4), (0,), (0, 5, 2), (0, 512), (0,)]
        assert outputs["detection_size"].tolist() == [0] * len(photos)


def test_fifty_faces_and_the_cut_to_the_largest(folder, graph, reference, tmp_path):
    crowd = discs((1280, 1280), 54, 11)
    theirs = reference.find(crowd)
    assert 50 <= len(theirs.scores) <= 64, len(theirs.scores)
    np.testing.assert_allclose(graph.find(crowd).boxes, theirs.boxes, atol=0.01)
    build_face_graph(folder / "detector.onnx", folder / "recogniser.onnx", tmp_path / "few.onnx", max_faces=7)
    kept = np.sort(np.argsort(-theirs.areas, kind="stable")[:7])
    np.testing.assert_allclose(
        parity.FusedGraph(tmp_path / "few.onnx", CPU, 2).find(crowd).boxes, theirs.boxes[kept], atol=0.01
    )


def test_weights_stand_in_the_file_once(folder):
    parts = sum((folder / name).stat().st_size for name in ("detector.onnx", "recogniser.onnx"))
    assert (folder / "fused.onnx").stat().st_size < parts + 120_000


def test_standard_operators_of_opset_17(folder):
    model = onnx.load(str(folder / "fused.onnx"))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]


def test_published_oddities(folder, graph, tmp_path):
    """Opset 11, shuffled outputs of rank 3 with false shapes, weights among the inputs; float16 recogniser."""
    old = export(DiscDetector(batched=True), torch.zeros(1, 3, 640, 640), tmp_path / "old.onnx", 9, opset=11)
    model = onnx.load(str(old))
    outputs = [model.graph.output[i] for i in (3, 8, 0, 4, 1, 7, 2, 6, 5)]
    del model.graph.output[:]
    for output in outputs:
        false = helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, ["a", 99, "b"])
        model.graph.output.append(false)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    onnx.save(model, str(old))
    half = export(SmallRecogniser().half(), torch.zeros(1, 3, 112, 112).half(), tmp_path / "half.onnx", 1)
    build_face_graph(old, half, tmp_path / "fused.onnx")
    picture, total = discs((832, 1280), 9, 2), parity.Differences()
    total.add(parity.FusedGraph(tmp_path / "fused.onnx", CPU, 2).find(picture), graph.find(picture), 0.5)
    assert (total.missed, total.extra) == (0, 0)
    assert min(total.cosines) > 0.9995


def test_recogniser_that_takes_one_face_at_a_time(folder, graph, tmp_path):
    model = onnx.load(str(folder / "recogniser.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, str(tmp_path / "one.onnx"))
    build_face_graph(folder / "detector.onnx", tmp_path / "one.onnx", tmp_path / "fused.onnx")
    picture = discs((832, 1280), 9, 2)
    ours = parity.FusedGraph(tmp_path / "fused.onnx", CPU, 2).find(picture)
    np.testing.assert_allclose(ours.embeddings, graph.find(picture).embeddings, rtol=1e-4, atol=1e-4)


def test_other_files_are_refused_by_name(folder, tmp_path):
    detector, recogniser = folder / "detector.onnx", folder / "recogniser.onnx"
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(FaceModelError, match=r"recogniser\.onnx.*640"):
        build_face_graph(recogniser, recogniser, tmp_path / "out.onnx")
    with pytest.raises(FaceModelError, match=r"detector\.onnx.*512"):
        build_face_graph(detector, detector, tmp_path / "out.onnx")
    for name in ("text.onnx", "missing.onnx"):
        with pytest.raises(FaceModelError, match=name):
            build_face_graph(tmp_path / name, recogniser, tmp_path / "out.onnx")
    for option in ("detection", "border"):
        with pytest.raises(ValueError, match=f"{option} is 'best', must be one of"):
            build_face_graph(detector, recogniser, tmp_path / "out.onnx", **{option: "best"})
    assert not (tmp_path / "out.onnx").exists()


def test_graph_loads_without_warnings(folder, capfd):
    onnxruntime.InferenceSession(str(folder / "fused.onnx"), providers=CPU)
    assert "[W:" not in capfd.readouterr().err
