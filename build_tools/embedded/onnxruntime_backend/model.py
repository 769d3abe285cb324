"""Triton's side of the embedded onnxruntime backend; what it does is in `build_tools.embedded.onnx_model`."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from build_tools.embedded.onnx_model import OnnxModel


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        self._model = OnnxModel.load(config, folder, args["model_instance_kind"])

    def execute(self, requests: list) -> list:
        feeds = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        return [self._response(outcome) for outcome in self._model.run(feeds)]

    def _response(self, outcome: dict | Exception) -> "pb_utils.InferenceResponse":
        if isinstance(outcome, Exception):
            error = pb_utils.TritonError(f"onnx runtime error: {outcome}", pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outcome.items()])
