"""Converts published files to those that serving reads: pickles to safetensors, and floats to one type.

Pickles are read with `weights_only=True`.
"""

import pickle
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PARTS = ("image_proj", "ip_adapter")
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""Float types by their names in safetensors files."""


def convert_adapter(source: Path, output: Path, dtype: torch.dtype | None = None) -> None:
    """Convert InstantID's `ip-adapter.bin` to safetensors, with names joined by a dot. With `dtype` None, types stay.

    Raises ValueError for a file that is not `{"image_proj": tensors, "ip_adapter": tensors}`.
    """
    try:
        parts = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{source}: is not a plain pickle of tensors: {error}") from error
    if not isinstance(parts, dict) or set(parts) != set(PARTS):
        raise ValueError(f"{source}: must hold {' and '.join(PARTS)}")
    tensors = {f"{part}.{name}": tensor for part in PARTS for name, tensor in parts[part].items()}
    _save({name: cast_floats(tensor, dtype, f"{source}: {name}") for name, tensor in tensors.items()}, output)


def convert_floats(source: Path, output: Path, dtype: torch.dtype) -> None:
    """Write a safetensors file again with its floats in `dtype`; other tensors stay as they are.

    Raises ValueError, naming the tensor, for a value that does not fit.
    """
    tensors = load_file(source)
    _save({name: cast_floats(tensor, dtype, f"{source}: {name}") for name, tensor in tensors.items()}, output)


def has_floats_other_than(path: Path, dtype: torch.dtype) -> bool:
    """Whether `convert_floats` would change the file. Reads the header only."""
    with safe_open(path, "pt") as tensors:
        kinds = {FLOATS.get(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118
    return bool(kinds - {dtype, None})


def cast_floats(tensor: torch.Tensor, dtype: torch.dtype | None, name: str) -> torch.Tensor:
    """A contiguous copy in `dtype`; raises ValueError if a finite value becomes infinite."""
    if dtype is None or not tensor.is_floating_point():
        return tensor.contiguous()
    converted = tensor.to(dtype).contiguous()
    if not torch.isfinite(converted).all() and torch.isfinite(tensor).all():
        raise ValueError(f"{name}: holds values too large for {dtype}")
    return converted


def _save(tensors: dict[str, torch.Tensor], output: Path) -> None:
    partial = output.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(output)
