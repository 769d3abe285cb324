"""Converts published pickles to safetensors, once; pickles are read with `weights_only=True`."""

from pathlib import Path

import torch
from safetensors.torch import save_file

PARTS = ("image_proj", "ip_adapter")


def convert_adapter(source: Path, output: Path) -> None:
    """InstantID's `ip-adapter.bin` to `ip-adapter.safetensors`, names joined by a dot, dtypes as they are.

    Raises ValueError for a file that is not `{"image_proj": tensors, "ip_adapter": tensors}`.
    """
    parts = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(parts, dict) or set(parts) != set(PARTS):
        raise ValueError(f"{source}: must hold {' and '.join(PARTS)}")
    tensors = {f"{part}.{name}": tensor.contiguous() for part in PARTS for name, tensor in parts[part].items()}
    partial = output.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(output)
