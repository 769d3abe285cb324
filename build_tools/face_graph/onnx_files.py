"""Reads detector and recogniser from ONNX files. The shapes of the outputs tell which output is which."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, compose, helper, version_converter

from build_tools.face_graph.ops import OPSET, Graph, Shape
from build_tools.face_graph.prelu import split_prelu
from instantid.contract import DETECTION_SIZES, EMBEDDING_SIZE

STRIDES = (8, 16, 32)
ANCHORS = 2
CROP = 112
KINDS = {1: "scores", 4: "distances", 10: "landmark offsets"}
_FLOATS: dict[int, type[np.generic]] = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


class FaceModelError(ValueError):
    """The face graph cannot be built from a file; the message names the file and what was expected."""


@dataclass(frozen=True)
class OnnxNetwork:
    """A model to insert into another graph; all its names have a prefix of their own."""

    model: onnx.ModelProto
    dtype: type[np.generic]
    shape: Shape

    @property
    def input_name(self) -> str:
        return str(self.model.graph.input[0].name)

    def insert(self, graph: Graph, blob: str) -> None:
        """Add the network's nodes and weights to `graph`, reading FP32 `blob`.

        Without the declared shape, onnxruntime does not fuse sums into convolutions.
        """
        to = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph.op("Cast", blob, name=self.input_name, to=to)
        graph.declare(self.input_name, to, self.shape)
        if self.dtype == np.float32:
            graph.declare(blob, to, self.shape)
        graph.nodes.extend(self.model.graph.node)
        graph.constants.extend(self.model.graph.initializer)


@dataclass(frozen=True)
class OnnxDetector:
    """`outputs[width][i]` is the output of that row width (see KINDS) for the i-th stride; `sizes` are input sides."""

    network: OnnxNetwork
    outputs: dict[int, tuple[str, ...]]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class OnnxRecogniser:
    """A recogniser of at most `batch` faces at once, with the input `(x - mean) / deviation`."""

    network: OnnxNetwork
    output: str
    batch: int
    mean: float
    deviation: float


def read_detector(path: Path) -> OnnxDetector:
    """Read an SCRFD with landmarks: one image in, nine outputs, two anchors a cell. Raises FaceModelError else."""
    model = _load(path)
    sides = [dim.dim_value for dim in _input(path, model).type.tensor_type.shape.dim[2:]]
    sizes = tuple(size for size in DETECTION_SIZES if all(side in (0, size) for side in sides))
    if not sizes or sizes[0] != DETECTION_SIZES[0]:
        raise FaceModelError(f"{path}: input is {sides[0]}x{sides[1]}, expected {DETECTION_SIZES[0]} or any size")
    network = _network(path, model, "detector/", (1, 3, "side", "side"))
    for size in sizes:
        groups = _group(path, _probe(path, model, (1, 3, size, size)), size)
    outputs = {width: tuple(f"detector/{name}" for name in names) for width, names in groups.items()}
    return OnnxDetector(network, outputs, sizes)


def read_recogniser(path: Path, batch: int) -> OnnxRecogniser:
    """Read an ArcFace: faces of 112x112 in, 512 numbers out. Raises FaceModelError for others."""
    model = _load(path)
    shape = [dim.dim_value for dim in _input(path, model).type.tensor_type.shape.dim]
    if any(side not in (0, CROP) for side in shape[2:]):
        raise FaceModelError(f"{path}: input is {shape[2]}x{shape[3]}, expected {CROP}x{CROP}")
    batch = shape[0] or batch
    outputs = _probe(path, model, (batch, 3, CROP, CROP))
    if [output.shape for output in outputs.values()] != [(batch, EMBEDDING_SIZE)]:
        shapes = ", ".join(str(output.shape) for output in outputs.values())
        raise FaceModelError(f"{path}: outputs are {shapes}, expected one of [faces, {EMBEDDING_SIZE}]")
    mean, deviation = (0.0, 1.0) if _normalises_itself(model) else (127.5, 127.5)
    network = _network(path, model, "recogniser/", ("group_faces", 3, CROP, CROP))
    return OnnxRecogniser(network, f"recogniser/{next(iter(outputs))}", batch, mean, deviation)


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path))
    except Exception as error:
        raise FaceModelError(f"{path}: cannot be read as ONNX: {error}") from error


def _input(path: Path, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs: list[onnx.ValueInfoProto] = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise FaceModelError(f"{path}: has {len(inputs)} inputs, expected one of shape [n, 3, height, width]")
    if inputs[0].type.tensor_type.elem_type not in _FLOATS:
        raise FaceModelError(f"{path}: input {inputs[0].name!r} is neither float32 nor float16")
    return inputs[0]


def _network(path: Path, model: onnx.ModelProto, prefix: str, shape: Shape) -> OnnxNetwork:
    """Convert the model to our opset and drop its declared shapes, which are for another size in published files."""
    entry = _input(path, model)
    fitted = onnx.ModelProto()
    fitted.CopyFrom(model)
    graph = fitted.graph
    del graph.input[:], graph.value_info[:]
    graph.input.append(entry)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    if any(opset.domain not in ("", "ai.onnx") for opset in fitted.opset_import):
        raise FaceModelError(f"{path}: uses operators outside the ONNX standard")
    if fitted.opset_import[0].version != OPSET:
        fitted = version_converter.convert_version(fitted, OPSET)
    dtype = _FLOATS[entry.type.tensor_type.elem_type]
    split_prelu(fitted.graph)
    return OnnxNetwork(compose.add_prefix(fitted, prefix), dtype, shape)


def _probe(path: Path, model: onnx.ModelProto, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Run the model on zeros of this shape, because declared output shapes are often wrong; returns outputs by name."""
    entry = _input(path, model)
    blob = np.zeros(shape, _FLOATS[entry.type.tensor_type.elem_type])
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        arrays = session.run(None, {entry.name: blob})
    except Exception as error:
        raise FaceModelError(f"{path}: does not run on an input of {list(shape)}: {error}") from error
    return dict(zip((output.name for output in session.get_outputs()), arrays, strict=True))


def _group(path: Path, outputs: dict[str, np.ndarray], size: int) -> dict[int, tuple[str, ...]]:
    """Output names by row width and stride: `ANCHORS * (size / stride)^2` rows of 1, 4 or 10 numbers."""
    wanted = {(ANCHORS * (size // stride) ** 2, width): None for width in KINDS for stride in STRIDES}
    found = {output.shape[-2:]: name for name, output in outputs.items() if output.size == np.prod(output.shape[-2:])}
    if len(outputs) != len(wanted) or found.keys() != wanted.keys():
        shapes = ", ".join(str(list(output.shape)) for output in outputs.values())
        kinds = ", ".join(f"{width} ({kind})" for width, kind in KINDS.items())
        raise FaceModelError(
            f"{path}: outputs at {size}x{size} are {shapes}; expected nine, for strides {STRIDES} and "
            f"{ANCHORS} anchors a cell, with rows of {kinds}"
        )
    return {width: tuple(found[ANCHORS * (size // stride) ** 2, width] for stride in STRIDES) for width in KINDS}


def _normalises_itself(model: onnx.ModelProto) -> bool:
    """insightface's rule (`ArcFaceONNX`): files that begin with Sub and Mul (from MXNet) expect raw pixels."""
    names = [node.name for node in model.graph.node[:8]]
    return all(any(name.startswith(kind) for name in names) for kind in (("Sub", "_minus"), ("Mul", "_mul")))
