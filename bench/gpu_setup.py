"""What the parts of `bench/gpu.py` share: weights, device, requests, clock, kept results."""

import gc
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from gpu_jobs import Job, make_job
from plain_loop import PlainLoop
from random_full import make_random_full
from rich.console import Console

from instantid.models.measure import Size
from instantid.models.sdxl import SdxlModel
from miniature.sdxl import write_adapter, write_identitynet, write_sdxl

STANDARD = (1024, 30)


@dataclass
class Setup:
    """One run's choices and its results; `size` is (height, width) in pixels."""

    weights: Path
    toy: bool
    device: torch.device
    dtype: torch.dtype
    steps: int
    size: Size
    rounds: int
    output: Path

    @classmethod
    def make(cls, toy: bool, weights: Path | None, steps: int, rounds: int, output: Path) -> "Setup":
        device = torch.device("cuda" if torch.cuda.is_available() and not toy else "cpu")
        side = 128 if toy else STANDARD[0]
        return cls(
            weights=weights or Path("weights") / ("random-toy" if toy else "random-full"),
            toy=toy,
            device=device,
            dtype=torch.float16 if device.type == "cuda" else torch.float32,
            steps=steps,
            size=(side, side),
            rounds=rounds,
            output=output,
        )

    def __post_init__(self) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.output.mkdir(parents=True, exist_ok=True)
        self._expected: torch.Tensor | None = None
        self._began = time.perf_counter()
        self._base = 0

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_standard(self) -> bool:
        return not self.toy and (self.size[0], self.steps) == STANDARD

    @property
    def cost_sizes(self) -> list[Size]:
        return [(side, side) for side in ((64, 128) if self.toy else (512, 768, 1024))]

    @property
    def cost_modes(self) -> tuple[str, ...]:
        return ("graphs",) if self.is_cuda else ("eager",)

    @property
    def cost_rows(self) -> list[int]:
        return [1, 2, 4, 8]

    def make_weights(self) -> None:
        """Make the set where it is missing; a half-made one is never taken for whole."""
        if (self.weights / "sdxl").exists():
            return
        self.say(f"making {self.weights}")
        partial = self.weights.with_name(self.weights.name + ".partial")
        if self.toy:
            write_sdxl(partial / "sdxl")
            write_identitynet(partial / "identitynet")
            write_adapter(partial / "adapter")
        else:
            make_random_full(partial, self.device, self.say)
        partial.rename(self.weights)

    def model(self, dtype: torch.dtype, vae_dtype: torch.dtype | None = None) -> SdxlModel:
        return SdxlModel.load(self.weights, self.device, dtype, vae_dtype=vae_dtype)

    def expected(self) -> torch.Tensor:
        """Final latents of job 0 by diffusers' pipeline in float32."""
        if self._expected is None:
            self._expected = PlainLoop(self.weights, self.device, torch.float32).latents(self.job(0))
            self.free()
        return self._expected

    def job(self, number: int) -> Job:
        """A request with guidance 5; every number has its own prompt, face, landmarks and seed."""
        return make_job(number, self.size, self.steps)

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds until the device has finished."""
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def mark_memory(self) -> None:
        """What is allocated now does not count in `peak`."""
        self._base = torch.cuda.memory_allocated() if self.is_cuda else 0

    def reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """GiB allocated at most since `reset_peak`; 0 on a CPU."""
        return (torch.cuda.max_memory_allocated() - self._base) / 2**30 if self.is_cuda else 0.0

    def free(self) -> None:
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def say(self, text: str) -> None:
        Console(stderr=True).print(f"{time.perf_counter() - self._began:6.0f} s  {text}", highlight=False)

    @property
    def results(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.exists() else {"run": self._run()}

    def keep(self, part: str, found: dict[str, Any]) -> None:
        """Merge into the JSON of this device; modes that were not run again stay."""
        kept = self.results
        old = kept.get(part, {})
        if part == "speed" and old.get("size") == list(self.size) and old.get("dtype") == found["dtype"]:
            found = {**found, "modes": {**old["modes"], **found["modes"]}}
        kept[part] = {**old, **found} if part in ("costs", "cold") else found
        self._file.write_text(json.dumps(kept, indent=1))

    @property
    def _file(self) -> Path:
        name = "toy" if self.toy else self._device_name().lower().replace(" ", "-")
        return self.output / f"gpu_{name}.json"

    def _run(self) -> dict[str, str]:
        return {"device": self._device_name(), "torch": torch.__version__, "diffusers": diffusers.__version__}

    def _device_name(self) -> str:
        return torch.cuda.get_device_name() if self.is_cuda else platform.machine()

    def _wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()
