"""Memory of the device: what is free, and what a failed allocation means."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from instantid.errors import DeviceFailure, Overloaded

log = logging.getLogger(__name__)


def free_bytes(device: torch.device) -> int:
    """What the driver says is free on the device; on a CPU, the machine's available memory."""
    if device.type == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(torch.cuda.mem_get_info(device)[0])


def release(device: torch.device) -> None:
    """Give memory that torch keeps and does not use back to the driver."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Turn a failed allocation into Overloaded and a device that cannot be used any more into DeviceFailure.

    After most CUDA errors the process cannot use the device again (CUDA's "sticky" errors). Other errors pass through.
    """
    try:
        yield
        return
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            if _is_usable(device):
                raise
            log.exception("the device failed")
            raise DeviceFailure("the device failed; the server is restarting") from None
        log.error("out of memory: %s", error)
    release(device)
    raise Overloaded("not enough device memory for this picture right now; retry later or ask for a smaller one")


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch has a class of its own for a GPU's memory, and only a text for the CPU's."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _is_usable(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True
