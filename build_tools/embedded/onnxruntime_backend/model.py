"""Triton's side of the embedded onnxruntime backend; what it does is in `build_tools.embedded.onnx_model`."""

import json
import os
from pathlib import Path

import triton_python_backend_utils as pb_utils

from build_tools.embedded.onnx_model import OnnxModel
from instantid.serving.board import Board, server_folder


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self._model = OnnxModel(json.loads(args["model_config"]), folder, device)
        self._board = Board(server_folder(os.getppid()), args["model_instance_name"])
        self._board.start()

    def execute(self, requests: list) -> list:
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        self._board.close()

    def _respond(self, request: "pb_utils.InferenceRequest") -> "pb_utils.InferenceResponse":
        try:
            outputs = self._model.run({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        except Exception as error:  # noqa: BLE001 - whatever onnxruntime raises is this request's answer
            wrong = type(error).__name__ in ("InvalidArgument", "ValueError")
            code = pb_utils.TritonError.INVALID_ARG if wrong else pb_utils.TritonError.INTERNAL
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnx runtime error: {error}", code))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
