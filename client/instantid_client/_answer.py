"""An answer's tensors, read and checked."""

import json
from collections.abc import Mapping
from typing import Any

from instantid_client import contract
from instantid_client._values import Tensors
from instantid_client.errors import AnswerMismatch, ServerError
from instantid_client.results import FaceReport, GenerationResult


def read_answer(tensors: Tensors, request_id: str, timings: Mapping[str, float]) -> GenerationResult:
    """Raises AnswerMismatch if it belongs to another request, and ServerError if it is not whole."""
    try:
        _check_id(tensors, request_id)
        images = tuple(bytes(image) for image in _values(tensors, contract.IMAGE))
        return GenerationResult(
            images=images,
            seeds=tuple(int(seed) for seed in _values(tensors, contract.SEEDS)),
            face=FaceReport.from_json(_values(tensors, contract.FACE)[0]),
            request_id=request_id,
            seconds=timings["total"],
            report=_report(tensors),
            timings=timings,
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ServerError(
            f"the answer cannot be read: {type(error).__name__}: {error}", request_id=request_id
        ) from error


def _check_id(tensors: Tensors, sent: str) -> None:
    """A server that was frozen once handed one caller's answer to another (docs/request.md); never accept that."""
    if _values(tensors, contract.REQUEST_ID)[0] != sent.encode():
        raise AnswerMismatch(f"the answer to request {sent} carries another request's id", request_id=sent)


def _report(tensors: Tensors) -> tuple[Mapping[str, Any], ...]:
    """Empty from a server that does not have this output yet."""
    if contract.REPORT.name not in tensors:
        return ()
    return tuple(json.loads(text) for text in _values(tensors, contract.REPORT))


def _values(tensors: Tensors, tensor: contract.Tensor) -> Any:
    return tensors[tensor.name].reshape(-1)
