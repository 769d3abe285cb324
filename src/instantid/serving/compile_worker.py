"""Compiles steps beside a server: `python -m instantid.serving.compile_worker ORDER`, as `compiling.py` starts it."""

import fcntl
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from instantid.diffusion import SdxlDenoiser
from instantid.diffusion.compiled import compile_step, fingerprint, note_of
from instantid.serving.calibration import make_job
from instantid.settings import Settings

log = logging.getLogger(__name__)


def main(order: dict[str, Any]) -> None:
    """Write every package that is not there; several workers of one folder take turns."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.nice(10)
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
    folder = Path(order["folder"])
    if not folder.name.endswith(fingerprint(denoiser)):
        raise SystemExit(f"{folder.name}: the networks here are not those of the server")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, (height, width), rows in order["steps"]:
            if not note_of(folder / name).exists() and os.getppid() == order["server"]:
                log.info("compiling %s", name)
                compile_step(denoiser, [denoiser.start(make_job((height, width))) for _ in range(rows)], folder / name)
    log.info("done")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
