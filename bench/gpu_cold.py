"""Cold starts: a new process, from nothing to its first picture. As a script it is that process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from gpu_jobs import make_job, run_steps
from gpu_modes import BY_NAME, use

from instantid.diffusion import SdxlDenoiser


def cold(weights: Path, mode: str, device: torch.device, dtype: torch.dtype, side: int, steps: int) -> dict[str, Any]:
    """Seconds in two new processes: with an empty compile cache, then with the one that the first left."""
    arguments = [str(weights), mode, str(device), str(dtype).removeprefix("torch."), str(side), str(steps)]
    with tempfile.TemporaryDirectory() as cache:
        return {name: _start(arguments, cache) for name in ("empty cache", "filled cache")}


def _start(arguments: list[str], cache: str) -> dict[str, float]:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    start = time.time()
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {"imports": found.pop("began") - start, **found, "total": time.time() - start}


def main(weights: Path, mode: str, device: str, dtype: str, side: int, steps: int) -> None:
    """Print as JSON when the imports were done, and the seconds of loading, first and second picture."""
    began = time.time()
    denoiser = SdxlDenoiser.load(weights, torch.device(device), getattr(torch, dtype))
    use(denoiser, BY_NAME[mode])
    loaded = time.time()
    job = make_job(0, (side, side), steps, guidance_scale=5.0)
    first, second = (_timed(lambda: denoiser.decode(run_steps(denoiser, job))) for _ in range(2))
    print(json.dumps({"began": began, "load": loaded - began, "first": first, "second": second}))


def _timed(call: Callable[[], object]) -> float:
    """Pictures end on the CPU: there is nothing left to wait for."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
