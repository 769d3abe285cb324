"""Triton's side of the third stage."""

from collections.abc import Mapping
from typing import Any

from instantid import contract
from instantid.contract import Tensor
from instantid.faces.choice import Faces
from instantid.faces.conditioning import condition
from instantid.photos import Inputs
from instantid.request import GenerationRequest
from instantid.serving.model import BlockingModel


class FaceConditioningModel(BlockingModel):
    signature = contract.FACE_CONDITIONING

    def respond(self, inputs: Inputs, parameters: Mapping[str, Any], request_id: str) -> dict[Tensor, Any]:
        tensors: dict[str, Any] = dict(inputs)
        request = GenerationRequest.from_json(tensors[contract.REQUEST.name].item())
        faces = Faces(*(tensors[tensor.name] for tensor in contract.FACES))
        conditioning = condition(request, faces, tensors[contract.INPUT_PICTURES.name])
        return {
            contract.EMBEDDINGS: conditioning.embeddings,
            contract.PICTURES: conditioning.pictures,
            contract.FACE: [conditioning.report],
            contract.MARKS: [int(mark * 1e9) for mark in self.watch.marked(request).marks],
        }
