"""The published face networks' architectures with random weights, in the published files' form, for measuring.

`scrfd_10g_bnkps.onnx` and `glintr100.onnx` themselves are for research only and cannot be had without a download.
"""

import warnings
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from build_tools.fullsize_faces.iresnet import IResNet
from build_tools.fullsize_faces.scrfd import ANCHORS, HEAD, STRIDES, Head, Scrfd

Model = TypeVar("Model", bound=nn.Module)

_OPSET = 17
_DETECTOR_OUTPUTS = tuple(f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in STRIDES)
_FACE_SIDES = (2.0, 4.0)
"""Half the side of the boxes of a cell's two anchors, in strides."""
_LANDMARKS = ((-0.35, -0.2), (0.35, -0.2), (0.0, 0.15), (-0.25, 0.5), (0.25, 0.5))
"""Landmarks of an upright face, in halves of its box's side from the centre."""


def write_detector(path: Path, *, score_bias: float = -4.0, seed: int = 0) -> None:
    """Write SCRFD-10GF in the form of `scrfd_10g_bnkps.onnx`; a higher `score_bias` finds more "faces".

    Input `input.1` float32 `[1, 3, H, W]`; nine outputs `[anchors, 1 | 4 | 10]`, each kind for strides 8, 16, 32.
    The random heads draw face-like boxes and landmarks around their anchors, anywhere in the picture.
    """
    names = list(_DETECTOR_OUTPUTS)
    axes = {"input.1": {2: "height", 3: "width"}, **{name: {0: f"rows_{name}"} for name in names}}
    _export(random_detector(score_bias, seed), torch.zeros(1, 3, 640, 640), path, names, axes)


def write_recogniser(path: Path, *, float16: bool = False, seed: int = 0) -> None:
    """Write IResNet-100 in the form of `glintr100.onnx`: `input.1` `[n, 3, 112, 112]` to `[n, 512]`, not normalised."""
    model, crops = random_recogniser(seed), torch.zeros(1, 3, 112, 112)
    if float16:
        model, crops = model.half(), crops.half()
    _export(model, crops, path, ["embedding"], {"input.1": {0: "batch"}, "embedding": {0: "batch"}})


def random_detector(score_bias: float, seed: int) -> Scrfd:
    """SCRFD-10GF with finite activations of about unit variance."""
    torch.manual_seed(seed)
    model = _calibrated(Scrfd(), _clouds(4, 256))
    with torch.no_grad():
        for head in model.heads:
            for conv, bias, spread in _heads(cast(Head, head), score_bias):
                conv.weight.normal_(std=spread / (HEAD * 9) ** 0.5)
                conv.bias = nn.Parameter(bias)
    return model


def random_recogniser(seed: int) -> IResNet:
    """IResNet-100 with finite activations of about unit variance."""
    torch.manual_seed(seed)
    return _calibrated(IResNet(), _clouds(4, 112))


def _heads(head: Head, score_bias: float) -> list[tuple[nn.Conv2d, Tensor, float]]:
    sides = torch.tensor(_FACE_SIDES).reshape(ANCHORS, 1)
    landmarks = torch.tensor(_LANDMARKS).reshape(1, -1)
    return [
        (head.score, torch.full((ANCHORS,), score_bias), 1.0),
        (head.distance, sides.expand(ANCHORS, 4).reshape(-1), 0.2),
        (head.landmark, (sides * landmarks).reshape(-1), 0.1),
    ]


def _calibrated(model: Model, examples: Tensor) -> Model:
    """He initialisation, then BatchNorm statistics from one batch of noise (cumulative average)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = None
    with torch.no_grad():
        model.train()(examples)
    return model.eval()


def _clouds(count: int, side: int) -> Tensor:
    """Noise of all scales, `[count, 3, side, side]` in [-1, 1]: nearer to photos than white noise is."""
    octaves = [torch.randn(count, 3, width, width) for width in (2, 4, 8, 16, 32, 64)]
    sized = [functional.interpolate(octave, size=(side, side), mode="bilinear") for octave in octaves]
    return torch.stack(sized).sum(dim=0).mul(0.3).clamp(-1, 1)


def _export(model: nn.Module, example: Tensor, path: Path, outputs: list[str], axes: dict[str, dict[int, str]]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(
            model.eval(),
            (example,),
            str(path),
            input_names=["input.1"],
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )
