"""One call for a step of the networks: eager, replayed from a CUDA graph, or compiled; equal up to rounding."""

import logging
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from instantid.models.parts import tensors

log = logging.getLogger(__name__)

WARM_UPS = 2
"""Passes before a graph is captured: libraries choose kernels and allocate their workspaces in them."""


Call = Callable[[Any], Tensor]
"""Takes a tree of tensors, gives what the networks predict, [rows, channels, height, width].

Trees of equal `key` have equal shapes; `constant` is the part that stays the same while a batch does.
"""


@dataclass(frozen=True)
class Execution:
    """How the networks run where nothing was prepared for a shape. `attention` None leaves the kernel to torch."""

    channels_last: bool = False
    attention: SDPBackend | None = None


EXECUTIONS = {
    "eager": Execution(),
    "channels_last": Execution(channels_last=True),
    "flash": Execution(True, SDPBackend.FLASH_ATTENTION),
    "cudnn": Execution(True, SDPBackend.CUDNN_ATTENTION),
}


class Predictor:
    """Runs a step in the way that was prepared for its shape, and eagerly where none was or where that fails."""

    def __init__(self, networks: Call) -> None:
        self._networks = networks
        self.execution = EXECUTIONS["eager"]
        self.prepared: dict[Hashable, Call] = {}
        """By the key of the inputs that each is for."""

    def __call__(self, inputs: Any) -> Tensor:
        call = self.prepared.get(inputs.key)
        if call is None:
            return self.eager(inputs)
        try:
            return call(inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            log.exception("the prepared step for %s failed; it runs eagerly from now on", inputs.key)
            del self.prepared[inputs.key]
            return self.eager(inputs)

    def eager(self, inputs: Any) -> Tensor:
        kernel = self.execution.attention
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            return self._networks(inputs)


class GraphedCall:
    """A call replayed from one CUDA graph, so that no kernel waits for Python.

    Graphs that share a `pool` never run at the same time; results are copied out of it. Constant inputs that are the
    same object as in the replay before are not copied again.
    """

    def __init__(self, call: Call, inputs: Any, pool: Any) -> None:
        leaves, spec = pytree.tree_flatten(inputs)
        static = pytree.tree_unflatten([_own(leaf) for leaf in leaves], spec)
        self._changing, self._constant = tensors(static.changing), tensors(static.constant)
        self._last: Any = None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call(static)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = call(static)

    def __call__(self, inputs: Any) -> Tensor:
        _copy(self._changing, tensors(inputs.changing))
        if inputs.constant is not self._last:
            _copy(self._constant, tensors(inputs.constant))
            self._last = inputs.constant
        self._graph.replay()
        return self._output.clone()


def _own(leaf: Any) -> Any:
    return leaf.clone(memory_format=torch.contiguous_format) if isinstance(leaf, Tensor) else leaf


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """In a few kernels: torch copies lists at once where a list has one dtype."""
    pairs = list(zip(targets, sources, strict=True))
    for dtype in {target.dtype for target in targets}:
        chosen = [(target, source.contiguous()) for target, source in pairs if target.dtype == dtype]
        torch._foreach_copy_([target for target, _ in chosen], [source for _, source in chosen])
