"""Ways to run the networks on a GPU. Each changes the speed; none changes what is computed, beyond rounding."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from instantid.models.sdxl import SdxlDenoiser
from instantid.models.sdxl.state import Rows

Predict = Callable[[Tensor, Tensor, Rows, Tensor | None], Tensor]
MAX_SHAPES = 64
"""Shapes that may be compiled; beyond torch's own limit of 8 it would run uncompiled."""
WARM_UPS = 2


@dataclass(frozen=True)
class Mode:
    """`attention`: the kernel, None for torch's choice. `compiled`: torch.compile's mode, "" for not at all."""

    name: str
    channels_last: bool = True
    attention: SDPBackend | None = None
    compiled: str = ""
    graphs: bool = False

    @property
    def needs_cuda(self) -> bool:
        return self.graphs or self.attention in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


FLASH, CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
MODES = (
    Mode("eager", channels_last=False),
    Mode("channels_last"),
    Mode("flash", attention=FLASH),
    Mode("cudnn", attention=CUDNN),
    Mode("graphs", graphs=True),
    Mode("graphs_flash", attention=FLASH, graphs=True),
    Mode("graphs_cudnn", attention=CUDNN, graphs=True),
    Mode("compiled", compiled="default"),
    Mode("compiled_graphs", compiled="default", graphs=True),
    Mode("compiled_graphs_flash", compiled="default", attention=FLASH, graphs=True),
    Mode("compiled_graphs_cudnn", compiled="default", attention=CUDNN, graphs=True),
    Mode("autotuned_graphs", compiled="max-autotune-no-cudagraphs", graphs=True),
)
BY_NAME = {mode.name: mode for mode in MODES}


def use(denoiser: SdxlDenoiser, mode: Mode) -> None:
    """Make the denoiser run in this mode from now on; what the mode before it compiled is dropped."""
    layout = torch.channels_last if mode.channels_last else torch.contiguous_format
    networks = denoiser.networks
    for network in (networks.unet, networks.identitynet, networks.vae):
        network.to(memory_format=layout)
    torch.compiler.reset()
    vars(networks.vae).pop("decode", None)
    predict: Predict = partial(SdxlDenoiser.predict, denoiser)
    if mode.compiled:
        predict = compiled(predict, mode.compiled)
        networks.vae.decode = compiled(networks.vae.decode, mode.compiled)
    predict = _with_kernel(predict, mode.attention)
    denoiser.predict = Graphed(predict) if mode.graphs else _normalised(predict)  # type: ignore[method-assign]


def compiled(call: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """One graph per shape, UNet and IdentityNet together; raises where a graph would break."""
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    return torch.compile(call, fullgraph=True, dynamic=False, mode=mode)


class Graphed:
    """`predict` replayed from one CUDA graph per shape, so that no kernel waits for Python.

    All graphs share one memory pool: they never run at the same time, and results are copied out of it.
    """

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[torch.Size, bool], _Captured] = {}

    def __call__(self, latents: Tensor, timesteps: Tensor, rows: Rows, identity_scale: Tensor | None) -> Tensor:
        key = (latents.shape, identity_scale is None)
        if key not in self._graphs:
            self._graphs[key] = _Captured(self._predict, self._pool, (latents, timesteps, rows, identity_scale))
        return self._graphs[key](latents, timesteps, rows, identity_scale)


class _Captured:
    def __init__(self, predict: Predict, pool: Any, given: tuple[Tensor, Tensor, Rows, Tensor | None]) -> None:
        latents, timesteps, rows, identity_scale = given
        static = (_own(latents), _own(timesteps.float()), mapped(_own, rows), mapped(_own, identity_scale))
        self._changing, self._constant = tensors((static[0], static[1], static[3])), tensors(static[2])
        self._rows: Rows | None = None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                predict(*static)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = predict(*static)

    def __call__(self, latents: Tensor, timesteps: Tensor, rows: Rows, identity_scale: Tensor | None) -> Tensor:
        """Rows that are the same object as in the call before are not copied again."""
        changed = (latents, timesteps.float(), identity_scale)
        _copy(self._changing, tensors(changed))
        if rows is not self._rows:
            _copy(self._constant, tensors(rows))
            self._rows = rows
        self._graph.replay()
        return self._output.clone()


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """In a few kernels: torch copies lists at once where a list has one dtype and equal strides."""
    pairs = list(zip(targets, sources, strict=True))
    for dtype in {target.dtype for target in targets}:
        chosen = [(target, source.contiguous()) for target, source in pairs if target.dtype == dtype]
        torch._foreach_copy_([target for target, _ in chosen], [source for _, source in chosen])


def tensors(value: Any) -> list[Tensor]:
    """All tensors inside nested tuples and dataclasses, in order."""
    if value is None:
        return []
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, tuple) else [getattr(value, field.name) for field in fields(value)]
    return [tensor for part in parts for tensor in tensors(part)]


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nested tuples and dataclasses with each tensor changed."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(change, part) for part in value)
    return type(value)(**{field.name: mapped(change, getattr(value, field.name)) for field in fields(value)})


def _normalised(predict: Predict) -> Predict:
    """Gives `predict` the same dtypes and strides in any batch, so that torch.compile sees one shape once."""

    def call(latents: Tensor, timesteps: Tensor, rows: Rows, identity_scale: Tensor | None) -> Tensor:
        return predict(latents, timesteps.float(), mapped(torch.Tensor.contiguous, rows), identity_scale)

    return call


def _with_kernel(predict: Predict, backend: SDPBackend | None) -> Predict:
    def call(*given: Any) -> Tensor:
        with nullcontext() if backend is None else sdpa_kernel(backend):
            return predict(*given)

    return call


def _own(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
