"""Between Triton's tensors and numpy, and between our errors and Triton's."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from instantid import contract
from instantid.contract import ModelSignature, Tensor
from instantid.engine import Answer
from instantid.errors import EngineFailure, InvalidArgument, Overloaded, ServiceError
from instantid.request import NUMPY_TYPES, GenerationRequest

log = logging.getLogger(__name__)


def read_id(request: Any) -> str:
    """The caller's own id of the request. Raises InvalidArgument if it is not UTF-8, or too long to be in a log."""
    try:
        found = str(request.request_id())
    except UnicodeDecodeError as error:
        raise InvalidArgument("id", "not UTF-8", f"byte {error.start} cannot be decoded") from error
    if len(found) > contract.MAX_ID_CHARACTERS:
        raise InvalidArgument("id", f"{len(found)} characters", f"must have at most {contract.MAX_ID_CHARACTERS}")
    return found


def read_inputs(request: Any, model: ModelSignature) -> dict[str, NDArray[Any] | None]:
    """The request's tensors by name, copied (Triton's memory is not ours once execute() returns); absent: None."""
    tensors = {t.name: pb_utils.get_input_tensor_by_name(request, t.name) for t in model.inputs}
    return {name: None if tensor is None else tensor.as_numpy().copy() for name, tensor in tensors.items()}


def read_parameters(request: Any) -> dict[str, Any]:
    """Triton's request parameters. Raises InvalidArgument if one is not UTF-8."""
    try:
        return dict(json.loads(request.parameters() or "{}"))
    except ValueError as error:
        raise InvalidArgument("parameters", "not readable", "must be UTF-8") from error


def check_tensor(tensor: Tensor, array: NDArray[Any], *shape: int) -> None:
    """Raises InvalidArgument unless an inner tensor has this shape, and only finite values within the contract's."""
    if array.shape != shape:
        raise InvalidArgument(tensor.name, f"shape {list(array.shape)}", f"must be {list(shape)}")
    if tensor.datatype == "FP32" and not np.all(np.abs(array) <= contract.MAX_INNER_VALUE):
        raise InvalidArgument(tensor.name, "not finite, or too large", f"must be within {contract.MAX_INNER_VALUE:g}")


def check_same(request: GenerationRequest, request_id: str, is_same: bool = True) -> None:
    """Raises Overloaded, for another try passes, if Triton has mixed this request up with another one.

    A Python model that was frozen for a second inside execute() may give its answer to the next caller (seen on 2.51).
    """
    if not is_same or request.request_id != request_id:
        raise Overloaded("the request was mixed up with another one inside the server; send it again")


def make_response(model: ModelSignature, values: Mapping[Tensor, Any]) -> Any:
    """A response with exactly the model's outputs; values are arrays, or what numpy makes one of."""
    assert set(values) == set(model.outputs), f"{model.name} must give {[t.name for t in model.outputs]}"
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(tensor.name, _array(tensor, value)) for tensor, value in values.items()]
    )


def error_response(error: Exception, request_id: str) -> Any:
    """An error of one request; text of our own errors is passed on, anything else goes to the log only."""
    if not isinstance(error, ServiceError):
        log.error("request %(request_id)r failed", {"request_id": request_id}, exc_info=error)
        error = EngineFailure("the request could not be served; the server's log has the reason")
    code = getattr(pb_utils.TritonError, error.status)
    text = str(error).encode(errors="replace").decode()
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


def make_answer(request: Any) -> Answer:
    """The answer of a request that outlives execute(): a response, or an exception, sent once."""
    sender = request.get_response_sender()

    def send(response: Any) -> None:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def respond(outcome: Any) -> None:
        request_id = _known_id(request)
        try:
            send(error_response(outcome, request_id) if isinstance(outcome, Exception) else outcome)
        except Exception as error:  # noqa: BLE001 - a response that cannot be sent must still end the call
            send(error_response(error, request_id))

    return Answer(respond)


def _known_id(request: Any) -> str:
    try:
        return read_id(request)
    except InvalidArgument:
        return ""


def _array(tensor: Tensor, value: Any) -> NDArray[Any]:
    return np.ascontiguousarray(np.asarray(value, NUMPY_TYPES.get(tensor.datatype, np.object_)))
