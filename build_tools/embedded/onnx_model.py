"""An ONNX file run as Triton's stock onnxruntime backend would run it on the CPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime as ort

from build_tools.embedded.onnx_config import (
    Config,
    ModelConfigError,
    check_signature,
    check_supported,
    model_shape,
    session_options,
)

Feed = dict[str, np.ndarray]
DEFAULT_FILE_NAME = "model.onnx"
Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class OnnxModel:
    session: ort.InferenceSession
    config: Config

    @classmethod
    def load(cls, config: Config, folder: Path, instance_kind: str) -> "OnnxModel":
        """Open the file in the version `folder`; raises ModelConfigError, naming the model, if it does not fit."""
        try:
            check_supported(config, instance_kind)
            path = _model_path(config, folder)
            session = ort.InferenceSession(str(path), session_options(config), ["CPUExecutionProvider"])
            check_signature(config, session)
        except ModelConfigError as error:
            raise ModelConfigError(f"unable to load model {config['name']!r}: {error}") from None
        return cls(session, config)

    def run(self, feeds: Sequence[Feed]) -> list[Feed | Exception]:
        """Outputs, or the error, of each request.

        Requests of a batching model share one run; if that run fails, each is run alone, so that only those at
        fault get an error. Without batching each request is run alone.
        """
        if len(feeds) > 1 and self.config.get("max_batch_size", 0) > 0:
            joined = _attempt(self._run_joined, feeds)
            if not isinstance(joined, Exception):
                return [*joined]
        return [_attempt(self._run_one, feed) for feed in feeds]

    def _run_joined(self, feeds: Sequence[Feed]) -> list[Feed]:
        names = feeds[0].keys()
        rows = [len(next(iter(feed.values()))) for feed in feeds]
        joined = self._run_one({name: np.concatenate([feed[name] for feed in feeds]) for name in names})
        bounds = np.cumsum(rows)[:-1]
        parts = {name: np.split(array, bounds) for name, array in joined.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(len(feeds))]

    def _run_one(self, feed: Feed) -> Feed:
        scalars = {node.name for node in self.session.get_inputs() if not model_shape(node)}
        prepared = {name: _to_onnx(array.reshape(()) if name in scalars else array) for name, array in feed.items()}
        names = [tensor["name"] for tensor in self.config["output"]]
        arrays = self.session.run(names, prepared)
        dims = (tensor["dims"] for tensor in self.config["output"])
        return {
            name: _to_triton(array.reshape([int(d) for d in shape]) if array.ndim == 0 else array)
            for name, array, shape in zip(names, arrays, dims, strict=True)
        }


def _attempt(function: Callable[[Given], Result], argument: Given) -> Result | Exception:
    try:
        return function(argument)
    except Exception as error:  # noqa: BLE001 - whatever onnxruntime raises is this request's answer
        return error


def _model_path(config: Config, folder: Path) -> Path:
    name = config.get("default_model_filename") or DEFAULT_FILE_NAME
    path = folder / (name if name.endswith(".onnx") else DEFAULT_FILE_NAME)
    if not path.is_file():
        raise ModelConfigError(f"no ONNX file at {path}")
    return path.resolve()


def _to_onnx(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.object_:
        return array
    return np.array([item.decode() for item in array.ravel()], dtype=object).reshape(array.shape)


def _to_triton(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.object_:
        return np.ascontiguousarray(array)
    return np.array([str(item).encode() for item in array.ravel()], dtype=object).reshape(array.shape)
