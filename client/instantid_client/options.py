"""The options of a call, by the contract's names, and how they become tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import tritonclient.grpc as triton

from instantid import contract
from instantid.contract import Tensor

Photo = bytes | str | Path
"""An encoded photo, or where it lies."""
NUMPY_TYPES: Mapping[str, Any] = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}
TENSORS = {tensor.name: tensor for tensor in contract.INSTANTID.inputs}


class Options(TypedDict, total=False):
    """What a caller may set beside photo and prompt; what is left out has the server's default.

    Bounds are in `instantid.contract`. Sides are in pixels; `pose_photo` is bytes or a path.
    """

    negative_prompt: str
    pose_photo: Photo
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    ip_adapter_scale: float
    controlnet_conditioning_scale: float
    control_guidance_start: float
    control_guidance_end: float
    scheduler: str
    num_images_per_prompt: int
    seed: int
    output_format: str
    output_quality: int


def make_inputs(values: Mapping[str, Any]) -> list[triton.InferInput]:
    """Tensors of the inputs that are given; photos are bytes by now. Raises TypeError for an unknown name."""
    unknown = sorted(set(values) - set(TENSORS))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; there are {', '.join(TENSORS)}")
    return [_make_input(TENSORS[name], value) for name, value in values.items() if value is not None]


def read_photo(photo: Photo) -> bytes:
    return photo if isinstance(photo, bytes) else Path(photo).read_bytes()


def _make_input(tensor: Tensor, value: Any) -> triton.InferInput:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if tensor.datatype == "BYTES":
        array = np.array([v.encode() if isinstance(v, str) else v for v in values], object)
    else:
        array = _numbers(tensor, values)
    made = triton.InferInput(tensor.name, list(array.shape), tensor.datatype)
    made.set_data_from_numpy(array)
    return made


def _numbers(tensor: Tensor, values: list[Any]) -> Any:
    """Values of the tensor's type; raises TypeError rather than round a float to a whole number."""
    kind = NUMPY_TYPES[tensor.datatype]
    if tensor.datatype != "FP32" and any(isinstance(v, bool) or v != int(v) for v in values):
        raise TypeError(f"{tensor.name}: {values[0]!r} is not a whole number")
    return np.array(values, kind)
