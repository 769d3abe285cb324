"""Between Triton's tensors and numpy, and between our errors and Triton's."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from instantid.contract import Model, Tensor
from instantid.errors import EngineFailure, ServiceError

log = logging.getLogger(__name__)

NUMPY_TYPES: Mapping[str, Any] = {
    "BYTES": np.object_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
}


def read_inputs(request: Any, model: Model) -> dict[str, NDArray[Any] | None]:
    """The request's tensors by name, copied (Triton's memory is not ours once execute() returns); absent: None."""
    tensors = {t.name: pb_utils.get_input_tensor_by_name(request, t.name) for t in model.inputs}
    return {name: None if tensor is None else tensor.as_numpy().copy() for name, tensor in tensors.items()}


def read_parameters(request: Any) -> dict[str, Any]:
    return dict(json.loads(request.parameters() or "{}"))


def make_response(model: Model, values: Mapping[Tensor, Any]) -> Any:
    """A response with exactly the model's outputs; values are arrays, or what numpy makes one of."""
    assert set(values) == set(model.outputs), f"{model.name} must give {[t.name for t in model.outputs]}"
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(tensor.name, _array(tensor, value)) for tensor, value in values.items()]
    )


def error_response(error: Exception, request_id: str) -> Any:
    """An error of one request; text of our own errors is passed on, anything else goes to the log only."""
    if not isinstance(error, ServiceError):
        log.error("request %r failed", request_id, exc_info=error)
        error = EngineFailure("the request could not be served; the server's log has the reason")
    code = getattr(pb_utils.TritonError, error.status)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


def _array(tensor: Tensor, value: Any) -> NDArray[Any]:
    return np.ascontiguousarray(np.asarray(value, NUMPY_TYPES[tensor.datatype]))
