"""Triton's side of the third stage."""

from collections.abc import Mapping
from typing import Any

from instantid import contract
from instantid.contract import Tensor
from instantid.faces.choice import Faces
from instantid.faces.conditioning import condition
from instantid.request import GenerationRequest
from instantid.serving.model import BlockingModel, Inputs


class FaceConditioningModel(BlockingModel):
    model = contract.FACE_CONDITIONING

    def respond(self, inputs: Inputs, parameters: Mapping[str, Any], request_id: str) -> dict[Tensor, Any]:
        tensors: dict[str, Any] = dict(inputs)
        request = GenerationRequest.from_json(tensors[contract.REQUEST.name].item())
        conditioning = condition(request, Faces(**{t.name: tensors[t.name] for t in contract.FACES}))
        return {
            contract.EMBEDDING: conditioning.embedding,
            contract.LANDMARK_PICTURE: conditioning.landmark_picture,
            contract.FACE: [conditioning.report],
        }
