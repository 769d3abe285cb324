"""Triton's side of the first stage."""

from collections.abc import Mapping
from typing import Any

from instantid import contract
from instantid.contract import Tensor
from instantid.intake import take_in
from instantid.profile import load_profile
from instantid.serving.model import BlockingModel, Inputs


class IntakeModel(BlockingModel):
    model = contract.INTAKE

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        self.profile = load_profile(self.settings.weights)
        self.mode = contract.MODES[self.settings.few_steps]

    def respond(self, inputs: Inputs, parameters: Mapping[str, Any], request_id: str) -> dict[Tensor, Any]:
        taken = take_in(inputs, parameters, request_id, self.profile, self.mode)
        return {
            contract.IMAGES: taken.images,
            contract.SIZES: taken.sizes,
            contract.REQUEST: [taken.request.to_json()],
        }
