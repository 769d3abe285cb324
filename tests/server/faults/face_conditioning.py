"""Face conditioning that gives no response for one prompt."""

import json

from instantid.serving.face_conditioning import FaceConditioningModel


class TritonPythonModel(FaceConditioningModel):
    def respond(self, inputs, parameters, request_id):
        if json.loads(self.signer.verify(inputs["request"].item()))["prompt"] == "no response in the list":
            return None
        return super().respond(inputs, parameters, request_id)
