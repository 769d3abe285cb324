"""Compiles steps beside a server: `python -m instantid.serving.compile_worker ORDER`, as `compiling.py` starts it."""

import fcntl
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from instantid.models.sdxl import SdxlDenoiser
from instantid.models.sdxl.compiled import compile_step, fingerprint, note_of
from instantid.serving.calibration import make_job
from instantid.settings import Settings

log = logging.getLogger(__name__)


def main(order: dict[str, Any]) -> None:
    """Write every package that is not there; several workers of one folder take turns."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.nice(10)
    folder = Path(order["folder"])
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [step for step in order["steps"] if not note_of(folder / step[0]).exists()]
        denoiser = _load(order) if missing else None
        for name, size, rows in missing:
            if denoiser and os.getppid() == order["server"]:
                log.info("compiling %s", name)
                compile_step(denoiser, [denoiser.start(make_job(tuple(size))) for _ in range(rows)], folder / name)
    log.info("done")


def _load(order: dict[str, Any]) -> SdxlDenoiser:
    settings = Settings.model_validate(order["settings"])
    torch.set_num_threads(settings.cpu_threads)
    denoiser = SdxlDenoiser.load(
        settings.weights,
        torch.device(order["device"]),
        getattr(torch, order["dtype"]),
        settings.checkpoint,
        settings.lora,
        settings.few_steps,
    )
    if not order["folder"].endswith(fingerprint(denoiser)):
        raise SystemExit("the networks here are not those of the server")
    return denoiser


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
