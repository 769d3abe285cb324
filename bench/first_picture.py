"""The process that `bench/cold_start.py` measures: imports, loading, calibration, two pictures.

Without calibration and face graph it needs no more than `bench/gpu.py`.
"""

import json
import logging
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from gpu_jobs import make_job, run_steps
from gpu_modes import BY_NAME, use

from instantid.models.sdxl import SdxlDenoiser
from instantid.profile import load_profile


def main(
    weights: Path,
    device: str = "cpu",
    dtype: str = "float32",
    side: int = 0,
    steps: int = 4,
    mode: str = "eager",
    calibrate: bool = True,
    cache: Path | None = None,
) -> None:
    """Print JSON: when imports were done, seconds of each stage, peak memory in GB."""
    found: dict[str, Any] = {"imported": time.time()}
    if (weights / "face_analysis.onnx").exists():
        found["face graph"] = _timed(lambda: _face_session(weights / "face_analysis.onnx", device))
    found |= _load(weights, device, dtype)
    denoiser = found.pop("denoiser")
    use(denoiser, BY_NAME[mode])
    compiled = os.environ.get("INSTANTID_COMPILE", "off") != "off"
    if compiled:
        found["compiled steps"] = _timed(lambda: _compiled_steps(denoiser, weights, cache))
    if calibrate:
        found["step costs"] = _timed(lambda: _calibrate(denoiser, weights, cache))
    side = side or int(load_profile(weights).native_area ** 0.5)
    job = make_job(0, (side, side), steps, guidance_scale=1.0 if steps == 1 else 5.0)
    found["text, first"] = _timed(lambda: denoiser.networks.text.encode(job.request.prompt))
    for name in ("first", "second"):
        found[f"picture, {name}"] = _timed(lambda: denoiser.decode(run_steps(denoiser, job)))
    if compiled:
        found["compiling, beside the server"] = _timed(lambda: _compile(denoiser, weights, cache))
    found["peak memory, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(found))


def _load(weights: Path, device: str, dtype: str) -> dict[str, Any]:
    """The denoiser, and seconds of each network's reading as loading logs them."""
    read: dict[str, float] = {}
    records = logging.getLogger("instantid.models.sdxl.network")
    records.setLevel(logging.INFO)
    records.addFilter(lambda record: read.update([record.args]) is not None)
    begun = time.perf_counter()
    denoiser = SdxlDenoiser.load(weights, torch.device(device), getattr(torch, dtype))
    rest = time.perf_counter() - begun - sum(read.values())
    return {
        "denoiser": denoiser,
        **{f"read {name}": seconds for name, seconds in read.items()},
        "rest of loading": rest,
    }


def _face_session(graph: Path, device: str) -> None:
    import onnxruntime

    provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    onnxruntime.InferenceSession(graph, providers=[provider])


def _calibrate(denoiser: SdxlDenoiser, weights: Path, cache: Path | None) -> None:
    from instantid.serving.calibration import plan_costs
    from instantid.settings import Settings

    plan_costs(denoiser, load_profile(weights), Settings(weights=weights, cache=cache))


def _compiled_steps(denoiser: SdxlDenoiser, weights: Path, cache: Path | None) -> Any:
    from instantid.serving.compiling import CompiledSteps
    from instantid.settings import Settings

    return CompiledSteps(denoiser, load_profile(weights), Settings(weights=weights, cache=cache))


def _compile(denoiser: SdxlDenoiser, weights: Path, cache: Path | None) -> None:
    steps = _compiled_steps(denoiser, weights, cache)
    steps.start()
    steps.wait()


def _timed(call: Callable[[], object]) -> float:
    """Seconds; what is called here ends on the CPU, so there is nothing left to wait for."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    typer.run(main)
