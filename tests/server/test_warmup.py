"""Triton's warm-up of the face graph. The denoiser's own is its calibration (instantid/serving/calibration.py)."""

import shutil

import numpy as np
import onnxruntime
import pytest

from build_tools.embedded.repository import assemble_repository
from build_tools.embedded.server import EmbeddedServer, EmbeddedServerError, ServerOptions
from instantid import contract
from tests.server.conftest import ROOT

FACE_ANALYSIS = ROOT / "model_repository/face_analysis"


def test_the_warm_up_photo_has_a_face(weights):
    images = np.fromfile(FACE_ANALYSIS / "warmup/portrait", np.uint8).reshape(1, contract.CANVAS, contract.CANVAS, 3)
    sizes = np.fromfile(FACE_ANALYSIS / "warmup/sizes", np.int64).reshape(1, 2)
    session = onnxruntime.InferenceSession(weights / "face_analysis.onnx")
    (embeddings,) = session.run(["embeddings"], {"images": images, "sizes": sizes})
    assert embeddings.shape == (1, contract.EMBEDDING_SIZE)
    assert np.abs(embeddings).sum() > 0


def options(place, weights, **changes):
    repository = assemble_repository(place / "source", weights / "face_analysis.onnx", place / "repository")
    return ServerOptions(repository, place / "run", ready_model="face_analysis", **changes)


def test_a_picture_goes_through_the_graph_before_the_model_is_ready(weights, tmp_path):
    shutil.copytree(FACE_ANALYSIS, tmp_path / "source/face_analysis")
    with EmbeddedServer(options(tmp_path, weights, log_verbosity=1)) as server:
        log = server.log_path.read_text()
    assert log.index("running warmup sample 'portrait'") < log.index("successfully loaded 'face_analysis'")


def test_a_model_whose_warm_up_cannot_run_is_never_ready(weights, tmp_path):
    shutil.copytree(FACE_ANALYSIS, tmp_path / "source/face_analysis")
    (tmp_path / "source/face_analysis/warmup/sizes").write_bytes(b"too short")
    with pytest.raises(EmbeddedServerError, match="warmup"), EmbeddedServer(options(tmp_path, weights)):
        pass
