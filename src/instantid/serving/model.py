"""What Triton's Python models share: logging, settings, board; the base of those that answer inside execute()."""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

import triton_python_backend_utils as pb_utils

from instantid.contract import ModelSignature, Tensor
from instantid.photos import Inputs
from instantid.serving.board import Board, server_folder
from instantid.serving.signing import Signer
from instantid.serving.tensors import error_response, make_response, read_id, read_inputs, read_parameters
from instantid.serving.watch import StageWatch
from instantid.settings import Settings


class TritonLogHandler(logging.Handler):
    """Sends Python's log records to Triton's log."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warn"
        write = getattr(pb_utils.Logger, "log_info" if record.levelno < logging.WARNING else f"log_{level}")
        write(self.format(record).encode(errors="backslashreplace").decode())


class JsonFormatter(logging.Formatter):
    """One JSON object a line; the named arguments of a message are fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **(record.args if isinstance(record.args, Mapping) else {}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def set_up(args: Mapping[str, str]) -> Settings:
    """Logging and settings of one instance; logs which `config_name` of the repository is in force.

    Triton takes `config.pbtxt` without a word where the configuration that was asked for does not exist.
    """
    settings = Settings()  # type: ignore[call-arg]
    handler: logging.Handler = TritonLogHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    if settings.log_format == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    parameters = json.loads(args["model_config"]).get("parameters", {})
    name = parameters.get("config_name", {}).get("string_value", "unnamed")
    logging.getLogger(__name__).info("%s: configuration %r", args["model_instance_name"], name)
    return settings


class PythonModel:
    """What all small models have: settings, a place on the board, the key of signatures, a watch."""

    signature: ClassVar[ModelSignature]

    def initialize(self, args: Mapping[str, str]) -> None:
        self.settings = set_up(args)
        folder = server_folder(os.getppid())
        self._board = Board(folder, args["model_instance_name"], self.backlog)
        self.signer = Signer(folder)
        self.watch = StageWatch(self.signature.name, self.settings)

    def finalize(self) -> None:
        self._board.close()

    def backlog(self) -> float:
        """What this instance has to do, in any unit that its siblings share."""
        return 0.0


class BlockingModel(PythonModel):
    """A Triton Python model whose `respond` turns one request's inputs into its outputs."""

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        self._board.start()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def respond(self, inputs: Inputs, parameters: Mapping[str, Any], request_id: str) -> dict[Tensor, Any]:
        raise NotImplementedError

    def _answer(self, request: Any) -> Any:
        request_id = ""
        try:
            with self.watch(request):
                request_id = read_id(request)
                inputs = read_inputs(request, self.signature)
                values = self.respond(inputs, read_parameters(request), request_id)
                return make_response(self.signature, values)
        except Exception as error:  # noqa: BLE001 - an uncaught one would fail the batch and show a path
            return error_response(error, request_id)
