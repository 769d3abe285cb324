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
from instantid.serving.tensors import check_same, check_tensor


class FaceConditioningModel(BlockingModel):
    signature = contract.FACE_CONDITIONING

    def respond(self, inputs: Inputs, parameters: Mapping[str, Any], request_id: str) -> dict[Tensor, Any]:
        tensors: dict[str, Any] = dict(inputs)
        text = self.signer.verify(tensors[contract.REQUEST.name].item())
        request = GenerationRequest.from_json(text)
        check_same(request, request_id)
        found = [tensors[tensor.name] for tensor in contract.FACES]
        for tensor, array in zip(contract.FACES, found, strict=True):
            count = len(request.photos) if tensor is contract.FACES[-1] else len(found[0])
            check_tensor(tensor, array, count, *tensor.dims[1:])
        conditioning = condition(request, Faces(*found), tensors[contract.INPUT_PICTURES.name])
        marked = self.watch.marked(request).to_json()
        return {
            contract.CONDITIONED_REQUEST: [self.signer.sign(marked, conditioning.embeddings, conditioning.pictures)],
            contract.EMBEDDINGS: conditioning.embeddings,
            contract.PICTURES: conditioning.pictures,
            contract.FACE: [conditioning.report],
        }
