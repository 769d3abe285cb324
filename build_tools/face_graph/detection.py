"""Detects the faces of all photos: the detector at each size, decoding, suppression, selection of the largest."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from build_tools.face_graph.letterbox import letterbox
from build_tools.face_graph.onnx_files import ANCHORS, STRIDES, OnnxDetector
from build_tools.face_graph.ops import Graph, Shape, Signature, Value, cast, element, ints, size, vector

_FOUND: tuple[Signature, ...] = (
    ("boxes", TensorProto.FLOAT, [None, 4]),
    ("scores", TensorProto.FLOAT, [None]),
    ("landmarks", TensorProto.FLOAT, [None, 5, 2]),
    ("photo_index", TensorProto.INT64, [None]),
    ("detection_size", TensorProto.INT64, [None]),
)
SCORE, OVERLAP = 0.5, 0.4
"""Minimum score of a face and maximum overlap (IoU) of two faces: insightface's defaults."""
NOTHING_FOUND = 0
"""The detection size of a photo in which no size found a face."""


@dataclass(frozen=True, slots=True)
class Faces:
    """Names of FP32 boxes [f, 4], scores [f], landmarks [f, 5, 2], all in the same order."""

    boxes: str
    scores: str
    landmarks: str

    def take(self, graph: Graph, index: str) -> "Faces":
        fields = (self.boxes, self.scores, self.landmarks)
        return Faces(*(graph.op("Gather", values, index, axis=0) for values in fields))


def detect(graph: Graph, images: str, sizes: str, detector: OnnxDetector, max_faces: int) -> None:
    """Add the outputs `boxes`, `scores`, `landmarks`, `photo_index` and `detection_size` to the graph.

    A Loop looks at one photo at one size in each turn. If it finds nothing, the next turn looks at the photo's next
    size, if there is one; else at the next photo. So the detector is in the file only once.
    """
    body = graph.body()
    faces = _look(body, images, sizes, detector, max_faces)
    _append(body, faces, detector.sizes)
    body.op("Less", "next_photo", size(body, images, 0), name="go_on")
    state: list[Signature] = [("photo", TensorProto.INT64, []), ("size", TensorProto.INT64, [])]
    carried = [(f"{name}_before", kind, shape) for name, kind, shape in _FOUND]
    grown = [(f"{name}_after", kind, shape) for name, kind, shape in _FOUND]
    proto = body.proto(
        "one_look",
        [("turn", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), *state, *carried],
        [("go_on", TensorProto.BOOL, []), *((f"next_{name}", kind, shape) for name, kind, shape in state), *grown],
    )
    some = graph.op("Greater", size(graph, images, 0), np.int64(0))
    start: list[Value] = [np.int64(0), np.int64(detector.sizes[0]), *(_empty(kind, shape) for _, kind, shape in _FOUND)]
    outputs = ["last_photo", "last_size", *(name for name, _, _ in _FOUND)]
    graph.add("Loop", ["", some, *start], outputs, body=proto)


def _empty(kind: int, shape: Shape) -> np.ndarray:
    dims = [dim if isinstance(dim, int) else 0 for dim in shape]
    return np.zeros(dims, np.float32 if kind == TensorProto.FLOAT else np.int64)


def _look(graph: Graph, images: str, sizes: str, detector: OnnxDetector, max_faces: int) -> Faces:
    box = letterbox(graph, images, sizes, "photo", "size")
    detector.network.insert(graph, box.blob)
    return _largest(graph, _suppress(graph, _decode(graph, detector, box.scale)), max_faces)


def _decode(graph: Graph, detector: OnnxDetector, scale: str) -> Faces:
    """Candidates with at least the minimum score, in photo pixels (insightface's `SCRFD.forward`)."""
    scores, distances, offsets = (_joined(graph, names, width) for width, names in detector.outputs.items())
    scores = graph.op("Reshape", scores, ints(-1))
    chosen = graph.op("GreaterOrEqual", scores, np.float32(SCORE))
    index = graph.op("Reshape", graph.op("NonZero", chosen), ints(-1))
    centre, stride = _anchors(graph, index)
    scores, distances, offsets = (graph.op("Gather", rows, index) for rows in (scores, distances, offsets))
    reach = graph.op("Mul", graph.op("Mul", distances, stride), np.array([-1, -1, 1, 1], np.float32))
    boxes = graph.op("Add", graph.op("Concat", centre, centre, axis=1), reach)
    steps = graph.op("Reshape", graph.op("Mul", offsets, stride), ints(-1, 5, 2))
    landmarks = graph.op("Add", graph.op("Unsqueeze", centre, ints(1)), steps)
    return Faces(graph.op("Div", boxes, scale), scores, graph.op("Div", landmarks, scale))


def _joined(graph: Graph, names: tuple[str, ...], width: int) -> str:
    rows = [graph.op("Reshape", cast(graph, name, np.float32), ints(-1, width)) for name in names]
    return graph.op("Concat", *rows, axis=0)


def _anchors(graph: Graph, index: str) -> tuple[str, str]:
    """Centres FP32 [k, 2] (x, y) and strides FP32 [k, 1] of anchors by number: stride, row, column, anchor."""
    grids = [graph.op("Div", "size", np.int64(stride)) for stride in STRIDES]
    counts = [graph.op("Mul", graph.op("Mul", grid, grid), np.int64(ANCHORS)) for grid in grids]
    starts: list[Value] = [np.int64(0), counts[0], graph.op("Add", counts[0], counts[1])]
    levels = [cast(graph, graph.op("GreaterOrEqual", index, start), np.int64) for start in starts[1:]]
    level = graph.op("Add", *levels)
    stride = graph.op("Gather", ints(*STRIDES), level)
    start = graph.op("Gather", vector(graph, *starts), level)
    grid = graph.op("Gather", vector(graph, *grids), level)
    cell = graph.op("Div", graph.op("Sub", index, start), np.int64(ANCHORS))
    row = graph.op("Div", cell, grid)
    column = graph.op("Sub", cell, graph.op("Mul", row, grid))
    stride = graph.op("Unsqueeze", stride, ints(1))
    cells = graph.op("Concat", *(graph.op("Unsqueeze", part, ints(1)) for part in (column, row)), axis=1)
    return cast(graph, graph.op("Mul", cells, stride), np.float32), cast(graph, stride, np.float32)


def _suppress(graph: Graph, faces: Faces) -> Faces:
    """Greedy suppression, best first. insightface counts pixels: a box is x1 - x0 + 1 of them wide."""
    spans = graph.op("Add", faces.boxes, np.array([0, 0, 1, 1], np.float32))
    selected = graph.op(
        "NonMaxSuppression",
        graph.op("Unsqueeze", spans, ints(0)),
        graph.op("Unsqueeze", faces.scores, ints(0, 1)),
        ints(np.iinfo(np.int32).max),
        np.array([OVERLAP], np.float32),
    )
    return faces.take(graph, element(graph, selected, 2, axis=1))


def _largest(graph: Graph, faces: Faces, limit: int) -> Faces:
    """The `limit` faces with the largest areas, still sorted by score."""
    sides = graph.op("Sub", *_corners(graph, faces.boxes))
    areas = graph.op("Mul", element(graph, sides, 0, axis=1), element(graph, sides, 1, axis=1))
    kept = graph.op("Min", vector(graph, size(graph, areas, 0)), ints(limit))
    graph.add("TopK", [areas, kept], ["largest_areas", "largest_index"])
    graph.add("TopK", ["largest_index", kept], ["kept_index", "kept_order"], largest=0)
    return faces.take(graph, "kept_index")


def _corners(graph: Graph, boxes: str) -> tuple[str, str]:
    low = graph.op("Slice", boxes, ints(0), ints(2), ints(1))
    return graph.op("Slice", boxes, ints(2), ints(4), ints(1)), low


def _append(graph: Graph, faces: Faces, sizes: tuple[int, ...]) -> None:
    """Append this turn's faces to the carried tensors, and choose photo and size of the next turn."""
    count = graph.op("Shape", faces.scores)
    found = graph.op("Greater", element(graph, count, 0), np.int64(0))
    last = graph.op("Equal", "size", np.int64(sizes[-1]))
    done = graph.op("Or", found, last)
    finished = graph.op("Where", found, "size", np.int64(NOTHING_FOUND))
    finished = graph.op("Expand", finished, vector(graph, cast(graph, done, np.int64)))
    new = {
        "boxes": faces.boxes,
        "scores": faces.scores,
        "landmarks": faces.landmarks,
        "photo_index": graph.op("Expand", "photo", count),
        "detection_size": finished,
    }
    for name, values in new.items():
        graph.op("Concat", f"{name}_before", values, name=f"{name}_after", axis=0)
    graph.op("Add", "photo", cast(graph, done, np.int64), name="next_photo")
    graph.op("Where", done, np.int64(sizes[0]), np.int64(sizes[-1]), name="next_size")
