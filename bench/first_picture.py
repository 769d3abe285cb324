"""The process that `bench/cold_start.py` measures: imports, loading, calibration, two pictures.

Without calibration and face graph it needs no more than `bench/gpu.py`.
"""

import json
import logging
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from gpu_jobs import make_job, paint
from gpu_modes import MODES, use

from instantid.models.sdxl import SdxlModel
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
    model = found.pop("model")
    side = side or int(load_profile(weights).native_area ** 0.5)
    use(model, MODES[mode], [((side, side), 2)])
    if calibrate:
        found["step costs"] = _timed(lambda: _calibrate(model, weights, cache))
    job = make_job(0, (side, side), steps, guidance_scale=1.0 if steps == 1 else 5.0)
    found["text, first"] = _timed(lambda: model.networks.text.encode(job[0].prompt))
    for name in ("first", "second"):
        found[f"picture, {name}"] = _timed(lambda: paint(model, job))
    found["peak memory, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(found))


def _load(weights: Path, device: str, dtype: str) -> dict[str, Any]:
    """The model, and seconds of each network's reading as loading logs them."""
    read: dict[str, float] = {}
    records = logging.getLogger("instantid.models.sdxl.network")
    records.setLevel(logging.INFO)
    records.addFilter(lambda record: read.update([record.args]) is not None)
    begun = time.perf_counter()
    model = SdxlModel.load(weights, torch.device(device), getattr(torch, dtype))
    rest = time.perf_counter() - begun - sum(read.values())
    return {
        "model": model,
        **{f"read {name}": seconds for name, seconds in read.items()},
        "rest of loading": rest,
    }


def _face_session(graph: Path, device: str) -> None:
    import onnxruntime

    provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    onnxruntime.InferenceSession(graph, providers=[provider])


def _calibrate(model: SdxlModel, weights: Path, cache: Path | None) -> None:
    from instantid.models.measure import plan_costs
    from instantid.settings import Settings

    plan_costs(model, load_profile(weights), Settings(weights=weights, cache=cache))


def _timed(call: Callable[[], object]) -> float:
    """Seconds; what is called here ends on the CPU, so there is nothing left to wait for."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    typer.run(main)
