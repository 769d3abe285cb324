"""An ONNX file run as Triton's stock onnxruntime backend would: as far as `face_analysis` needs it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Config = dict[str, Any]
CUDA = "CUDAExecutionProvider"
TYPES = {"TYPE_UINT8": "tensor(uint8)", "TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}
ALGORITHM_SEARCHES = ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")


class ModelConfigError(ValueError):
    """The configuration does not fit the ONNX file, or this machine cannot run it as configured."""


class OnnxModel:
    """One session; `device` is the number of a GPU, None for the CPU.

    Raises ModelConfigError, naming the model, if the file or the CUDA provider is not there, or if tensors differ.
    """

    def __init__(self, config: Config, folder: Path, device: int | None) -> None:
        self._outputs = [tensor["name"] for tensor in config["output"]]
        try:
            self._session = _open(config, folder, device)
            _check_tensors("input", config["input"], self._session.get_inputs())
            _check_tensors("output", config["output"], self._session.get_outputs())
        except ModelConfigError as error:
            raise ModelConfigError(f"unable to load model {config['name']!r}: {error}") from None

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of one request by name; onnxruntime's own exceptions pass."""
        arrays = self._session.run(self._outputs, feed)
        return dict(zip(self._outputs, map(np.ascontiguousarray, arrays), strict=True))


def _open(config: Config, folder: Path, device: int | None) -> ort.InferenceSession:
    path = folder / (config.get("default_model_filename") or "model.onnx")
    if not path.is_file():
        raise ModelConfigError(f"no ONNX file at {path}")
    if int(config.get("max_batch_size", 0)):
        raise ModelConfigError("max_batch_size must be 0: the embedded backend runs one request at a time")
    options = ort.SessionOptions()
    options.intra_op_num_threads = _parameter(config, "intra_op_thread_count")
    if device is None:
        return ort.InferenceSession(path.resolve(), options, ["CPUExecutionProvider"])
    search = ALGORITHM_SEARCHES[_parameter(config, "cudnn_conv_algo_search")]
    return _open_on_gpu(path.resolve(), options, {"device_id": device, "cudnn_conv_algo_search": search})


def _open_on_gpu(path: Path, options: ort.SessionOptions, cuda: dict[str, Any]) -> ort.InferenceSession:
    """onnxruntime goes on with the CPU, without an error, where CUDA cannot be loaded; this does not."""
    if CUDA not in ort.get_available_providers():
        raise ModelConfigError(
            f"KIND_GPU, but this onnxruntime has no {CUDA}: install the extra `gpu` in place of `build`, "
            "or use --model-config-name=cpu"
        )
    ort.preload_dlls()
    session = ort.InferenceSession(path, options, [(CUDA, cuda), "CPUExecutionProvider"])
    if CUDA not in session.get_providers():
        raise ModelConfigError(f"onnxruntime could not load its {CUDA}; the log above says what is missing")
    return session


def _parameter(config: Config, name: str) -> int:
    return int(config.get("parameters", {}).get(name, {}).get("string_value", 0))


def _check_tensors(side: str, configured: list[Config], nodes: list[ort.NodeArg]) -> None:
    """Names, types and shapes, -1 for each dimension without a fixed size; outputs may be left out."""
    model = {node.name: f"{node.type} {[d if isinstance(d, int) else -1 for d in node.shape]}" for node in nodes}
    names = {tensor["name"] for tensor in configured}
    if names - set(model) or (side == "input" and names != set(model)):
        raise ModelConfigError(f"the configuration has {side}s {sorted(names)}, the file {sorted(model)}")
    for tensor in configured:
        name, kind = tensor["name"], TYPES.get(tensor["data_type"], tensor["data_type"])
        says = f"{kind} {[int(dim) for dim in tensor['dims']]}"
        if says != model[name]:
            raise ModelConfigError(f"{side} {name!r}: the configuration says {says}, the file has {model[name]}")
