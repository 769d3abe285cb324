"""Ways to run the networks that `bench/gpu.py` compares, through the seam that serving uses (`models/predict.py`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from instantid.models.predict import EXECUTIONS
from instantid.models.sdxl import SdxlModel
from instantid.models.setup import capture_graphs

MAX_SHAPES = 64
"""Shapes that may be compiled; beyond torch's own limit of 8 it would run uncompiled."""


@dataclass(frozen=True)
class Mode:
    """`execution`: a name of EXECUTIONS. `compiled`: torch.compile's mode, "" for not at all."""

    execution: str
    graphs: bool = False
    compiled: str = ""

    @property
    def needs_cuda(self) -> bool:
        return self.graphs or self.execution == "cudnn"


MODES = {
    "eager": Mode("eager"),
    "graphs": Mode("channels_last", graphs=True),
    "channels_last": Mode("channels_last"),
    "flash": Mode("flash"),
    "cudnn": Mode("cudnn"),
    "graphs_flash": Mode("flash", graphs=True),
    "graphs_cudnn": Mode("cudnn", graphs=True),
    "compiled_graphs": Mode("channels_last", graphs=True, compiled="default"),
    "compiled_graphs_cudnn": Mode("cudnn", graphs=True, compiled="default"),
    "compiled": Mode("channels_last", compiled="default"),
}
"""The most telling first: a short lease may end before the last."""


def use(model: SdxlModel, mode: Mode, shapes: list[tuple[tuple[int, int], int]]) -> None:
    """Make the model run in this mode from now on; `shapes` ((height, width), rows) get a graph where it has graphs."""
    torch.compiler.reset()
    model.use(EXECUTIONS[mode.execution])
    predictor = model.denoise.predictor
    vars(predictor).pop("eager", None)
    if mode.compiled:
        predictor.eager = compiled(predictor.eager, mode.compiled)  # type: ignore[method-assign]
    if mode.graphs:
        capture_graphs(model, shapes)


def compiled(call: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """One graph per shape, UNet and IdentityNet together; raises where a graph would break."""
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    return torch.compile(call, fullgraph=True, dynamic=False, mode=mode)
