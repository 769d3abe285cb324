"""Writes the miniature detector and recogniser as ONNX files in the form of the published ones."""

import warnings
from pathlib import Path
from typing import TypeVar

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from miniature.detector import WIDTHS, Detector, PublishedForm
from miniature.recogniser import EMBEDDING, Recogniser
from miniature.training import load_float16

DATA = Path(__file__).parent / "data"
_OPSET = 17

Model = TypeVar("Model", bound=nn.Module)


def write_detector(path: Path, weights: Path = DATA / "detector.safetensors") -> None:
    """Write the detector in the form of `scrfd_10g_bnkps.onnx`.

    The input `input.1` is float32 `[1, 3, H, W]`, RGB, `(x - 127.5) / 128`, with H and W divisible by 32. The nine
    outputs are, for strides 8, 16, 32 each, scores `[anchors, 1]` in [0, 1], then distances `[anchors, 4]` to left,
    top, right and bottom, then landmark offsets `[anchors, 10]`, both in strides from the anchor's centre.
    """
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)]
    rows = {name: {0: f"anchors_{name.split('_')[1]}"} for name in names}
    model = PublishedForm(loaded(Detector(), weights))
    export_onnx(model, torch.zeros(1, 3, 128, 128), path, names, {"input.1": {2: "height", 3: "width"}, **rows})
    _fix_widths(path, WIDTHS)


def write_recogniser(path: Path, weights: Path = DATA / "recogniser.safetensors") -> None:
    """Write the recogniser in ArcFace's form.

    The input `input.1` is float32 `[n, 3, 112, 112]`, RGB, `(x - 127.5) / 127.5`; the output `embedding` is `[n, 512]`,
    not normalised.
    """
    model = loaded(Recogniser(), weights)
    axes = {"input.1": {0: "batch"}, "embedding": {0: "batch"}}
    export_onnx(model, torch.zeros(1, 3, 112, 112), path, ["embedding"], axes)
    _fix_widths(path, (EMBEDDING,))


def loaded(model: Model, weights: Path) -> Model:
    """Load float16 weights as float32, switch to evaluation mode and fold BatchNorm into the convolutions."""
    return fold_norms(load_float16(model, weights).eval())


def fold_norms(model: Model) -> Model:
    """Fold each BatchNorm that follows a layer in a `Sequential` into that layer; changes and returns the model."""
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                layer, norm = module[index], module[index + 1]
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[index], module[index + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
                elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
                    module[index], module[index + 1] = fuse_linear_bn_eval(layer, norm), nn.Identity()
    return model


def _fix_widths(path: Path, widths: tuple[int, ...]) -> None:
    """Write the width of each output into the file; the exporter leaves it open after a reshape."""
    model = onnx.load(path)
    for output, width in zip(model.graph.output, widths, strict=True):
        output.type.tensor_type.shape.dim[1].dim_value = width
    onnx.checker.check_model(model)
    onnx.save(model, path)


def export_onnx(
    model: nn.Module, example: Tensor, path: Path, outputs: list[str], axes: dict[str, dict[int, str]]
) -> None:
    """Write the model with the input `input.1`, named as in the published files; `axes` names the dynamic axes."""
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
