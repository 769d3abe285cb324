"""Reads one diffusers network from its folder: no layer is given values that are thrown away afterwards."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

log = logging.getLogger(__name__)

WEIGHTS = "diffusion_pytorch_model"


def load_network(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A network with every tensor it needs and no other, read straight to the device; None: the file's own types.

    Raises FileNotFoundError or ValueError, naming file and tensor.
    """
    with logged(folder.name):
        network = empty(kind, folder)
        tensors: dict[str, Tensor] = {}
        for file in _files(folder):
            tensors |= {name: tensor.to(dtype or tensor.dtype) for name, tensor in read(file, device).items()}
    network._fix_state_dict_keys_on_load(tensors)
    try:
        missing, unexpected = network.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder}: " + " ".join(str(error).split())) from None
    for problem, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise ValueError(f"{folder}: {problem} keys: {min(names)} and {len(names) - 1} more")
    return network.eval().requires_grad_(False)


@contextmanager
def logged(name: str) -> Iterator[None]:
    """Logs the seconds that reading one network took."""
    begun = time.perf_counter()
    yield
    log.info("%s: read in %.2f s", name, time.perf_counter() - begun)


def empty(kind: Any, folder: Path) -> Any:
    """A network of this folder's configuration, without values."""
    with torch.device("meta"):
        return kind.from_config(json.loads(existing(folder / "config.json").read_text()))


def read(file: Path, device: torch.device) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file; on a CPU they are pages of the file until somebody writes to them."""
    try:
        return load_file(existing(file), device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file: {error}") from None


def variant(folder: Path) -> str | None:
    """`fp16` where a folder has only the files of that name, as on the hub."""
    has_default = any(folder.glob("*model.safetensors")) or any(folder.glob("*.safetensors.index.json"))
    return "fp16" if not has_default and any(folder.glob("*.fp16*safetensors*")) else None


def existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: this set of weights is not whole")
    return path


def _files(folder: Path) -> list[Path]:
    """One file, or the parts that an index names."""
    suffix = f".{name}" if (name := variant(folder)) else ""
    index = folder / f"{WEIGHTS}.safetensors.index{suffix}.json"
    if not index.exists():
        return [folder / f"{WEIGHTS}{suffix}.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
