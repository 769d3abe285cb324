"""One launched unit of work: finished at once on a CPU, still running on a GPU until it is waited for."""

import time
from collections.abc import Callable
from typing import Any

import torch

from instantid.models.memory import device_errors

Check = Callable[[], None]


class LaunchedUnit:
    """Times what is launched between `LaunchedUnit(device)` and `launched(check)`.

    `check` runs once the device is done: it reads what the unit left behind, so that nothing waits before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._check: Check | None = None
        self._end: Any = None
        self._begin: Any = self._mark() if device.type == "cuda" else time.perf_counter()
        self._seconds = 0.0
        self.done = device.type != "cuda"

    def launched(self, check: Check) -> "LaunchedUnit":
        if self._device.type == "cuda":
            self._end, self._check = self._mark(), check
        else:
            check()
            self._seconds = time.perf_counter() - self._begin
        return self

    def wait(self) -> float:
        """Seconds that the device took, by its own clock on a GPU. Raises DeviceFailure or Overloaded if it failed."""
        if not self.done:
            with device_errors(self._device):
                self._end.synchronize()
                self._seconds = self._begin.elapsed_time(self._end) / 1000
                if self._check:
                    self._check()
            self.done = True
        return self._seconds

    def _mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU that may be read once the unit has been waited for."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
