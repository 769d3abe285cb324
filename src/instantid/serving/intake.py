"""Triton's side of the first stage: everything that can be wrong with a request is found here."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from instantid import contract
from instantid.contract import Tensor
from instantid.photos import Inputs
from instantid.profile import load_profile
from instantid.request import read_request
from instantid.serving.model import BlockingModel
from instantid.styles import load_styles


class IntakeModel(BlockingModel):
    signature = contract.INTAKE

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        styles = load_styles(self.settings.styles)
        self.profile = load_profile(self.settings.weights, self.settings.few_steps, styles)

    def respond(self, inputs: Inputs, parameters: Mapping[str, Any], request_id: str) -> dict[Tensor, Any]:
        request, canvases = read_request(inputs, parameters, self.profile, request_id)
        return {
            contract.IMAGES: canvases.images,
            contract.SIZES: canvases.sizes,
            contract.INPUT_PICTURES: np.zeros((0, request.height, request.width, 3), np.uint8),
            contract.REQUEST: [self.signer.sign(self.watch.marked(request).to_json())],
        }
