"""Builds one ONNX file from pixels to faces: SCRFD, ArcFace, and everything that insightface does between them."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from build_tools.face_graph.detection import detect
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


def build_face_graph(detector: Path, recogniser: Path, output: Path, max_faces: int = MAX_FACES) -> None:
    """Fuse an SCRFD detector with landmarks and a 112x112 ArcFace recogniser into `output`.

    Inputs: `images` UINT8 [n, 1280, 1280, 3] RGB, each photo in the top-left corner; `sizes` INT64 [n, 2], height
    and width of the photo. Outputs, in pixels of the photo: `boxes` FP32 [f, 4] (x0, y0, x1, y1), `scores` FP32 [f],
    `landmarks` FP32 [f, 5, 2], `embeddings` FP32 [f, 512] not normalised, `photo_index` INT64 [f]; and
    `detection_size` INT64 [n]: 640, or 128 where 640 found nothing, or 0 where neither did. The faces of a photo
    stand together, best score first; of more than `max_faces`, the largest are kept.

    The results are insightface's `FaceAnalysis` with `det_size` 640 (128 where that finds nothing).
    Raises FaceModelError for a file of another form.
    """
    graph = Graph()
    detect(graph, "images", "sizes", read_detector(detector), max_faces)
    recognise(graph, "images", "sizes", read_recogniser(recogniser, _RECOGNITION_BATCH))
    model = helper.make_model(
        graph.proto("face_analysis", INPUTS, OUTPUTS),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="instantid build_tools.face_graph",
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.save(model, str(output))
