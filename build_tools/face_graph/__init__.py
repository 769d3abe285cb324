"""Builds one ONNX file from pixels to faces: SCRFD, ArcFace, and everything that insightface does between them."""

from pathlib import Path
from typing import Any, get_args

import onnx
from onnx import TensorProto, helper

from build_tools.face_graph.alignment import Border
from build_tools.face_graph.detection import Detection, detect
from build_tools.face_graph.onnx_files import FaceModelError, read_detector, read_recogniser
from build_tools.face_graph.ops import OPSET, Graph, Signature
from build_tools.face_graph.recognition import recognise
from instantid.contract import CANVAS, EMBEDDING_SIZE

__all__ = ["FaceModelError", "build_face_graph"]

MAX_FACES = 64
_RECOGNITION_BATCH = 8
_IR_VERSION = 9

INPUTS: tuple[Signature, ...] = (
    ("images", TensorProto.UINT8, ["photos", CANVAS, CANVAS, 3]),
    ("sizes", TensorProto.INT64, ["photos", 2]),
)
OUTPUTS: tuple[Signature, ...] = (
    ("boxes", TensorProto.FLOAT, ["faces", 4]),
    ("scores", TensorProto.FLOAT, ["faces"]),
    ("landmarks", TensorProto.FLOAT, ["faces", 5, 2]),
    ("embeddings", TensorProto.FLOAT, ["faces", EMBEDDING_SIZE]),
    ("photo_index", TensorProto.INT64, ["faces"]),
    ("detection_size", TensorProto.INT64, ["photos"]),
)


def build_face_graph(
    detector: Path,
    recogniser: Path,
    output: Path,
    max_faces: int = MAX_FACES,
    *,
    detection: Detection = "surest",
    border: Border = "black",
) -> None:
    """Fuse an SCRFD detector with landmarks and a 112x112 ArcFace recogniser into `output`.

    Inputs: `images` UINT8 [n, 1280, 1280, 3] RGB, each photo in the top-left corner; `sizes` INT64 [n, 2], height
    and width of the photo. Outputs, in pixels of the photo: `boxes` FP32 [f, 4] (x0, y0, x1, y1), `scores` FP32 [f],
    `landmarks` FP32 [f, 5, 2], `embeddings` FP32 [f, 512] not normalised, `photo_index` INT64 [f]; and
    `detection_size` INT64 [n]: 640 or 128, or 0 where neither found a face. The faces of a photo stand together,
    best score first; of more than `max_faces`, the largest are kept.

    Every photo is looked at with insightface's `det_size` 640 and 128. `detection` says which result is taken whole:
    "surest", the one whose largest face has the better score; "reference", 128 only where 640 found nothing. `border`
    fills the recogniser's crop where the photo ends: insightface's "black", or the photo's "edge" pixels repeated.
    Raises FaceModelError for a file of another form, ValueError for an option that there is not.
    """
    _check_choice("detection", detection, Detection)
    _check_choice("border", border, Border)
    graph = Graph()
    detect(graph, "images", "sizes", read_detector(detector), max_faces, detection)
    recognise(graph, "images", "sizes", read_recogniser(recogniser, _RECOGNITION_BATCH), border)
    model = helper.make_model(
        graph.proto("face_analysis", INPUTS, OUTPUTS),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="instantid build_tools.face_graph",
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.save(model, str(output))


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}, must be one of {', '.join(get_args(choices))}")
