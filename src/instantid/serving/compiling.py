"""Compiled steps for a denoiser that serves: those kept at once, others when a process beside it has made them.

A server is ready without them. Nothing that is kept is trusted: the folder's name says for which device, versions, code
and weights it was made, each package's note what was written, and a step is compared before it serves.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import torch

from instantid.engine.task import Size
from instantid.models.sdxl import SdxlDenoiser, free_bytes
from instantid.models.sdxl.compiled import fingerprint, load_step, note_of
from instantid.profile import Profile
from instantid.serving.calibration import make_job, planned_sizes
from instantid.settings import Settings

log = logging.getLogger(__name__)

NATIVE_ROWS, SMALL_ROWS = (2, 1), (2, 4, 8, 1)
"""Rows of a step that are compiled, the most usual first; in small pictures batches pay."""
LOOK_SECONDS = 1.0
WORKING_SHARE = 1.5
"""Of the weights' bytes: what the process that compiles takes of the device beside us."""


class Wanted(NamedTuple):
    """A step to have compiled."""

    size: Size
    rows: int

    @property
    def name(self) -> str:
        return f"{self.size[0]}x{self.size[1]}-{self.rows}.pt2"


class CompiledSteps:
    """Puts compiled steps into a denoiser; made before it serves, `start`ed once it does, and closed with it."""

    def __init__(self, denoiser: SdxlDenoiser, profile: Profile, settings: Settings) -> None:
        self._denoiser, self._settings = denoiser, settings
        self._folder = settings.cache_folder / f"compiled-{fingerprint(denoiser)}"
        native, *smaller = planned_sizes(profile)
        self._missing = [Wanted(native, rows) for rows in NATIVE_ROWS]
        self._missing += [Wanted(size, rows) for size in smaller for rows in SMALL_ROWS]
        self._worker: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()
        self._take()

    @property
    def reserved(self) -> float:
        """Bytes of the device that the process which compiles is going to take; 0 where it has nothing to do."""
        networks = self._denoiser.networks
        parameters = [p for network in (networks.unet, networks.identitynet) for p in network.parameters()]
        return WORKING_SHARE * sum(p.numel() * p.element_size() for p in parameters) if self._missing else 0.0

    def start(self) -> None:
        """Have made what is missing, in a process of its own, and take it as it comes."""
        reason = self._cannot() if self._missing else ""
        if self._missing and not reason:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._worker = self._start_worker()
            except OSError as error:
                reason = str(error)
        if reason:
            log.warning("%d steps stay uncompiled: %s", len(self._missing), reason)
        if self._worker:
            self._watcher = threading.Thread(target=self._watch, name="compiled steps", daemon=True)
            self._watcher.start()

    def wait(self) -> None:
        """Returns once nothing is compiled any more."""
        if self._watcher:
            self._watcher.join()

    def close(self) -> None:
        self._closed.set()
        if self._worker and self._worker.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._worker.pid, signal.SIGKILL)

    def _take(self) -> None:
        for wanted in list(self._missing):
            path = self._folder / wanted.name
            if note_of(path).exists() and self._load(wanted, path):
                self._missing.remove(wanted)

    def _load(self, wanted: Wanted, path: Path) -> bool:
        latents = self._denoiser.networks.unet.config.in_channels, wanted.size[0] // 8, wanted.size[1] // 8
        try:
            states = [self._denoiser.start(make_job(wanted.size)) for _ in range(wanted.rows)]
            self._denoiser.compiled[torch.Size((wanted.rows, *latents))] = load_step(self._denoiser, states, path)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it does not serve
            log.warning("a compiled step is thrown away: %s", error)
            with contextlib.suppress(OSError):
                note_of(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            return False
        log.info("compiled step %s serves", path.stem)
        return True

    def _cannot(self) -> str:
        device, needed = self._denoiser.device, self.reserved
        if shutil.which("g++") is None:
            return "there is no g++"
        if free_bytes(device) < needed:
            return f"{free_bytes(device) / 1e9:.1f} GB are free on {device}, {needed / 1e9:.1f} GB are needed"
        return ""

    def _start_worker(self) -> subprocess.Popen[bytes]:
        device = self._denoiser.device
        order = {
            "settings": self._settings.model_dump(mode="json"),
            "device": str(device),
            "dtype": str(self._denoiser.networks.dtype).removeprefix("torch."),
            "folder": str(self._folder),
            "server": os.getpid(),
            "steps": [(wanted.name, *wanted) for wanted in self._missing],
        }
        kept = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        paths = {name: str(self._settings.cache_folder / folder) for name, folder in kept.items()}
        command = [_python(), "-m", "instantid.serving.compile_worker", json.dumps(order)]
        with (self._folder / "log").open("wb") as output:
            return subprocess.Popen(
                command, env={**os.environ, **paths}, stdout=output, stderr=output, start_new_session=True
            )

    def _watch(self) -> None:
        if self._denoiser.device.type == "cuda":
            torch.cuda.set_device(self._denoiser.device)
        assert self._worker is not None
        while self._worker.poll() is None and not self._closed.wait(LOOK_SECONDS):
            self._take()
        self._take()
        if self._missing and not self._closed.is_set():
            log.warning("%d steps stay uncompiled; %s says why", len(self._missing), self._folder / "log")


def _python() -> str:
    """Triton's Python stub is no interpreter; the one whose packages it uses is."""
    return str(Path(sys.prefix) / "bin" / "python3")
