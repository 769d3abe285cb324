"""What surrounds the steps: memory, decoding, text, start and attention kernels."""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_jobs import run_steps
from gpu_setup import Setup
from plain_loop import PlainLoop
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from instantid.models.parts import kept_bytes
from instantid.models.predict import EXECUTIONS
from instantid.models.sdxl import SdxlModel

REPEATS = 5
KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
ATTENTIONS = {
    "1024 px, self, level 2": (2, 10, 4096, 4096, 64),
    "1024 px, self, level 3": (2, 20, 1024, 1024, 64),
    "1024 px, text, level 3": (2, 20, 1024, 77, 64),
    "1024 px, face, level 3": (2, 20, 1024, 16, 64),
}
"""Rows, heads, queries, keys and head size of SDXL's attentions."""


def pieces(setup: Setup) -> dict[str, Any]:
    """Milliseconds of each, medians."""
    model = setup.model(setup.dtype)
    prompts = iter(range(10**6, 2 * 10**6))
    return {
        "text_ms": _median(setup, lambda: model.networks.text.encode(f"a new prompt {next(prompts)}")),
        "start_ms": _median(setup, lambda: model.start(*setup.job(next(prompts)))),
        "restart_ms": _median(setup, lambda: model.start(*setup.job(0))),
        "attention": {name: _kernels(setup, shape) for name, shape in ATTENTIONS.items()},
    }


def memory(setup: Setup) -> dict[str, Any]:
    """MiB that the weights take, that a started request keeps, and that a step and a decoding take for their time."""
    setup.mark_memory()
    setup.reset_peak()
    model = setup.model(setup.dtype)
    found = {"weights_mib": setup.peak() * 1024}
    state = model.start(*setup.job(0))
    found["request_mib"] = kept_bytes((state.latents, state.conditions)) / 2**20
    found["planned_mib"] = model.plan(setup.job(0)[0]).bytes / 2**20
    for kind in ("step", "decode"):
        setup.mark_memory()
        setup.reset_peak()
        model.work(kind, [state]).wait()
        found[f"{kind}_mib"] = setup.peak() * 1024
    return found


def decoding(setup: Setup) -> dict[str, Any]:
    """Milliseconds of each way to decode, and how far its picture is from float32's by diffusers, in levels of 255."""
    state = run_steps(setup.model(setup.dtype), setup.job(0))
    plain = PlainLoop(setup.weights, setup.device, torch.float32)
    exact = plain.decode(state.latents)
    found = {"float32, diffusers": _decoded(setup, lambda: plain.decode(state.latents), exact)}
    for dtype in (torch.float32, torch.bfloat16):
        for name in ("eager", "channels_last"):
            setup.free()
            model = setup.model(setup.dtype, dtype)
            model.use(EXECUTIONS[name])
            decode = lambda model=model: _picture(model, state)  # noqa: E731
            found[f"{str(dtype).removeprefix('torch.')}, {name}"] = _decoded(setup, decode, exact)
    return found


@torch.inference_mode()
def _picture(model: SdxlModel, state: Any) -> np.ndarray:
    return model.decode.picture(state.latents[0]).cpu().numpy()


def _decoded(setup: Setup, decode: Callable[[], np.ndarray], exact: np.ndarray) -> dict[str, float]:
    off = np.abs(decode().astype(int) - exact)
    return {"ms": _median(setup, decode), "mean_difference": float(off.mean()), "largest_difference": int(off.max())}


def _kernels(setup: Setup, shape: tuple[int, int, int, int, int]) -> dict[str, dict[str, float]]:
    """Milliseconds and relative error of each kernel, against float64 on the same random numbers."""
    rows, heads, queries, keys, size = shape
    if setup.toy:
        queries, keys = queries // 16, max(16, keys // 16)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, heads, n, size, generator=generator) for n in (queries, keys, keys))
    given = [x.to(setup.device, setup.dtype) for x in (q, k, v)]
    exact = _exact(*given)
    return {kernel.name.lower(): _kernel(setup, kernel, given, exact) for kernel in KERNELS}


def _kernel(setup: Setup, kernel: SDPBackend, given: list[Tensor], exact: Tensor) -> dict[str, float]:
    def attend() -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(*given)

    try:
        error = float((attend().double() - exact).norm() / exact.norm())
    except RuntimeError:
        return {}
    calls = 20 if setup.is_cuda else 1
    return {"ms": _median(setup, lambda: [attend() for _ in range(calls)]) / calls, "error": error}


def _exact(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention in float64, one row at a time for the sake of memory."""
    parts = [
        (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        for q, k, v in zip(query.double(), keys.double(), values.double(), strict=True)
    ]
    return torch.stack(parts)


def _median(setup: Setup, call: Callable[[], object]) -> float:
    """Milliseconds; the first call does not count."""
    call()
    return statistics.median(setup.timed(call) for _ in range(REPEATS)) * 1000
