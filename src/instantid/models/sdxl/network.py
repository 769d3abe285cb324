"""Reads one diffusers network from its folder: no layer is given values that are thrown away afterwards."""

import json
import logging
import re
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
FOREIGN = {b"GG": "GGUF (quantised)", b"PK": "pickled torch", b"\x80\x02": "pickled torch"}
"""How files of other kinds begin."""


def load_network(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A network with every tensor it needs and no other, read straight to the device; None: the file's own types.

    Raises FileNotFoundError or ValueError, naming file and tensor.
    """
    with log_seconds(folder.name):
        network = meta_network(kind, folder)
        tensors: dict[str, Tensor] = {}
        for file in _files(folder):
            tensors |= {name: tensor.to(dtype or tensor.dtype) for name, tensor in read(file, device).items()}
    network._fix_state_dict_keys_on_load(tensors)
    return fill(network, tensors, folder)


def fill(network: Any, tensors: Mapping[str, Tensor], source: Path) -> Any:
    """The network with these tensors. Raises ValueError for one that is missing, unknown or of another shape."""
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    if odd := [name for name, value in tensors.items() if value.shape != shapes.get(name, value.shape)]:
        found = f"has the shape {list(tensors[odd[0]].shape)}, not {list(shapes[odd[0]])}"
        raise ValueError(f"{source}: {odd[0]} {found}, and {len(odd) - 1} more have others too")
    missing, unexpected = network.load_state_dict(tensors, strict=False, assign=True)
    for problem, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise ValueError(f"{source}: {problem} keys: {min(names)} and {len(names) - 1} more")
    return network.eval().requires_grad_(False)


@contextmanager
def log_seconds(name: str) -> Iterator[None]:
    """Logs the seconds that reading one network took."""
    begun = time.perf_counter()
    yield
    log.info("%s: read in %.2f s", name, time.perf_counter() - begun)


def meta_network(kind: Any, folder: Path) -> Any:
    """A network of this folder's configuration, without values."""
    with torch.device("meta"):
        return kind.from_config(json.loads(require(folder / "config.json").read_text()))


def read(file: Path, device: torch.device) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file; on a CPU they are pages of the file until somebody writes to them."""
    with require(file).open("rb") as opened:
        kind = FOREIGN.get(opened.read(2))
    if kind:
        raise ValueError(f"{file}: this is a {kind} file; only safetensors files are served")
    try:
        return load_file(file, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file: {error}") from None


def variant(folder: Path) -> str | None:
    """`fp16`, or another, where a folder has only files of such a name, as on the hub."""
    if any(folder.glob("*model.safetensors")) or any(folder.glob("*.safetensors.index.json")):
        return None
    matches = [re.fullmatch(r"\w*model\.(\w+)(-\d+-of-\d+)?\.safetensors", file.name) for file in folder.iterdir()]
    return min((match[1] for match in matches if match), key=lambda name: name != "fp16", default=None)


def require(path: Path) -> Path:
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
