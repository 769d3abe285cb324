"""Memory of the device: what a request keeps, what is free, and what a failed allocation means."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from instantid.errors import DeviceFailure, Overloaded

log = logging.getLogger(__name__)


def kept_bytes(state: Any) -> int:
    """Bytes that the tensors inside dataclasses, tuples and lists keep; a storage that is shared counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(state)}
    return sum(storages.values())


def free_bytes(device: torch.device) -> int:
    """What is free on the device, torch's own unused cache included; on a CPU, the machine's available memory."""
    if device.type == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Memory that does not suffice is given back and becomes Overloaded; a device that is gone, DeviceFailure.

    After most CUDA errors the process cannot use the device again (CUDA's "sticky" errors).
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
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise Overloaded("the device's memory does not hold this picture now; try again later, or a smaller one")


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


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors inside nested dataclasses, tuples and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
