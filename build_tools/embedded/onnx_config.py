"""Reading a model configuration as Triton's stock onnxruntime backend does (its src/onnxruntime.cc)."""

from typing import Any

import onnxruntime as ort

Config = dict[str, Any]

TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {0: ort.ExecutionMode.ORT_SEQUENTIAL, 1: ort.ExecutionMode.ORT_PARALLEL}


class ModelConfigError(ValueError):
    """The configuration does not fit the ONNX file, or asks for something that this backend does not have."""


def session_options(config: Config) -> ort.SessionOptions:
    """From `optimization.graph.level` and the stock backend's `parameters`; raises ModelConfigError."""
    options = ort.SessionOptions()
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    mode = _integer(config, "execution_mode")
    if mode not in EXECUTION_MODES:
        raise ModelConfigError(f"parameter execution_mode must be 0 or 1, got {mode}")
    options.execution_mode = EXECUTION_MODES[mode]
    options.intra_op_num_threads = max(0, _integer(config, "intra_op_thread_count"))
    options.inter_op_num_threads = max(0, _integer(config, "inter_op_thread_count"))
    options.enable_cpu_mem_arena = _boolean(config, "enable_mem_arena", True)
    options.enable_mem_pattern = _boolean(config, "enable_mem_pattern", True)
    return options


def _text(config: Config, name: str) -> str | None:
    entry = config.get("parameters", {}).get(name)
    return None if entry is None else str(entry["string_value"]).strip()


def _integer(config: Config, name: str) -> int:
    text = _text(config, name)
    try:
        return int(text) if text else 0
    except ValueError:
        raise ModelConfigError(f"parameter {name} must be an integer, got {text!r}") from None


def _boolean(config: Config, name: str, default: bool) -> bool:
    text = _text(config, name)
    known = {None: default, "1": True, "true": True, "0": False, "false": False}
    key = None if text is None else text.lower()
    if key not in known:
        raise ModelConfigError(f"parameter {name} must be true, false, 1 or 0, got {text!r}")
    return known[key]


def check_supported(config: Config, instance_kind: str) -> None:
    """Raise ModelConfigError for what the stock backend has and this one does not."""
    if instance_kind not in ("CPU", "KIND_CPU"):
        raise ModelConfigError(
            f"instance_group kind {instance_kind}: the embedded onnxruntime backend runs on the CPU only; "
            "use KIND_CPU here (--model-config-name=cpu), or Triton's own container for GPUs"
        )
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    for accelerator in accelerators.get("cpu_execution_accelerator", []):
        raise ModelConfigError(f"unknown execution accelerator {accelerator.get('name')!r}")
    unsupported = [name for name in ("sequence_batching", "batch_input", "batch_output") if config.get(name)]
    unsupported += [tensor["name"] for tensor in config.get("input", []) if tensor.get("allow_ragged_batch")]
    if unsupported:
        raise ModelConfigError(f"the embedded onnxruntime backend has no ragged or sequence batches: {unsupported}")


def check_signature(config: Config, session: ort.InferenceSession) -> None:
    """Names, types and dims of the configuration against the ONNX file, as strictly as the stock backend.

    Every input of the file must be configured; outputs may be left out. A fixed dimension of the file must be
    configured as it is; -1 of the file takes any configured input dimension, and only -1 for an output.

    Raises ModelConfigError naming tensor, what the file has and what the configuration says.
    """
    batch = int(config.get("max_batch_size", 0)) > 0
    provided = {node.name: node for node in session.get_inputs()}
    initializers = {node.name: node for node in session.get_overridable_initializers()}
    required = {tensor["name"] for tensor in config["input"] if not tensor.get("optional")}
    if missing := sorted(set(provided) - required):
        raise ModelConfigError(
            f"input {missing[0]!r}: required by the model, not a required input of the configuration"
        )
    for tensor in config["input"]:
        if tensor.get("optional") and batch:
            raise ModelConfigError(f"optional input {tensor['name']!r}: not supported for models that support batching")
        _check_tensor("input", tensor, {**initializers, **provided}, batch)
    outputs = {node.name: node for node in session.get_outputs()}
    for tensor in config["output"]:
        _check_tensor("output", tensor, outputs, batch)


def _check_tensor(side: str, tensor: Config, provided: dict[str, ort.NodeArg], batch: bool) -> None:
    name = tensor["name"]
    if name not in provided:
        raise ModelConfigError(f"{side} {name!r}: unexpected, the model has {', '.join(sorted(provided))}")
    node = provided[name]
    found = TRITON_TYPES.get(node.type, node.type)
    if tensor["data_type"] != found:
        raise ModelConfigError(f"{side} {name!r}: the configuration says {tensor['data_type']}, the model has {found}")
    configured = [int(dim) for dim in tensor.get("reshape", {}).get("shape", tensor["dims"])]
    if not _dims_fit(model_shape(node), configured, batch, exact=side == "output"):
        says = [-1, *configured] if batch else configured
        batching = ", with the batch dimension of max_batch_size > 0" if batch else ""
        raise ModelConfigError(
            f"{side} {name!r}: the configuration says shape {says}{batching}, the model has {model_shape(node)}"
        )


def model_shape(node: ort.NodeArg) -> list[int]:
    """Shape in the ONNX file, -1 for every dimension without a fixed size."""
    return [dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape]


def _dims_fit(model: list[int], configured: list[int], batch: bool, exact: bool) -> bool:
    if not model:
        return all(dim == 1 for dim in configured)
    if batch and model[0] != -1:
        return False
    complete = [-1, *configured] if batch else configured
    return len(model) == len(complete) and all(
        has == says or (has == -1 and not exact) for has, says in zip(model, complete, strict=True)
    )
