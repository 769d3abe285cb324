"""The full-size face networks against the published numbers."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from build_tools.face_graph.onnx_files import read_detector, read_recogniser

from .scripts import load

random_faces = load("random_faces")
PUBLISHED = [(random_faces.Scrfd, (480, 640), 9.98, 4.23), (random_faces.IResNet, (112, 112), 12.1, 65.2)]
"""Input height and width, GMAC and million weights (insightface's SCRFD and ArcFace tables)."""


@pytest.mark.parametrize(("network", "size", "gmac", "weights"), PUBLISHED)
def test_work_and_weights_of_the_published_networks(network: type[nn.Module], size, gmac, weights):
    with torch.device("meta"):
        model, blob = network().eval(), torch.zeros(1, 3, *size)
    with FlopCounterMode(display=False) as counter:
        model(blob)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.05)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(weights, rel=0.01)


def test_detector_file_has_the_published_form(tmp_path: Path):
    random_faces.write_random_detector(tmp_path / "detector.onnx")
    detector = read_detector(tmp_path / "detector.onnx")
    assert detector.sizes == (640, 128)
    session = onnxruntime.InferenceSession(str(tmp_path / "detector.onnx"))
    blob = np.random.default_rng(0).uniform(-1, 1, (1, 3, 128, 128)).astype(np.float32)
    outputs = session.run(None, {session.get_inputs()[0].name: blob})
    assert [output.shape for output in outputs] == [(n, k) for k in (1, 4, 10) for n in (512, 128, 32)]
    assert all(np.isfinite(output).all() for output in outputs)


@pytest.mark.long
@pytest.mark.parametrize("float16", [False, True])
def test_recogniser_file_has_the_published_form(tmp_path: Path, float16: bool):
    random_faces.write_random_recogniser(tmp_path / "recogniser.onnx", float16=float16)
    recogniser = read_recogniser(tmp_path / "recogniser.onnx", batch=2)
    assert (recogniser.batch, recogniser.mean, recogniser.deviation) == (2, 127.5, 127.5)
