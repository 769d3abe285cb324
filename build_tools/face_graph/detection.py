"""Detects the faces of all photos: the detector at each size, decoding, suppression, selection of the largest."""

from dataclasses import asdict, dataclass
from typing import Literal

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
_KEPT: tuple[Signature, ...] = (
    *((f"best_{name}", kind, shape) for name, kind, shape in _FOUND[:3]),
    ("best_size", TensorProto.INT64, []),
    ("best_rank", TensorProto.FLOAT, []),
)
NOTHING_FOUND = 0
"""The detection size of a photo in which no size found a face."""
Detection = Literal["surest", "reference"]
"""Which size's faces of a photo are kept: those whose largest face has the best score, or the first ones found."""


@dataclass(frozen=True, slots=True)
class FaceTensors:
    """Names of FP32 boxes [f, 4], scores [f], landmarks [f, 5, 2], all in the same order."""

    boxes: str
    scores: str
    landmarks: str

    def take(self, graph: Graph, index: str) -> "FaceTensors":
        fields = (self.boxes, self.scores, self.landmarks)
        return FaceTensors(*(graph.op("Gather", values, index, axis=0) for values in fields))


def detect(
    graph: Graph, images: str, sizes: str, detector: OnnxDetector, max_faces: int, detection: Detection = "surest"
) -> None:
    """Add the outputs `boxes`, `scores`, `landmarks`, `photo_index` and `detection_size` to the graph.

    A Loop looks at one photo at one size in each turn, and keeps the best look at each photo. So the detector is in
    the file only once.
    """
    looks = np.int64(len(detector.sizes))
    body = graph.body()
    body.op("Div", "turn", looks, name="photo")
    look = body.op("Mod", "turn", looks)
    body.op("Gather", ints(*detector.sizes), look, name="size")
    faces = _look(body, images, sizes, detector, max_faces)
    _keep(body, faces, _rank(body, faces, detection), body.op("Equal", look, looks - 1))
    body.op("Identity", "going", name="go_on")
    state = (*_KEPT, *_FOUND)
    proto = body.proto(
        "one_look",
        [("turn", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), *_named("{}_before", state)],
        [("go_on", TensorProto.BOOL, []), *_named("{}_after", state)],
    )
    turns = graph.op("Mul", size(graph, images, 0), looks)
    start: list[Value] = [_empty(kind, shape) for _, kind, shape in state]
    outputs = [*(f"last_{name}" for name, _, _ in _KEPT), *(name for name, _, _ in _FOUND)]
    graph.add("Loop", [turns, "", *start], outputs, body=proto)


def _named(form: str, signatures: tuple[Signature, ...]) -> list[Signature]:
    return [(form.format(name), kind, shape) for name, kind, shape in signatures]


def _empty(kind: int, shape: Shape) -> np.ndarray:
    dims = [dim if isinstance(dim, int) else 0 for dim in shape]
    return np.zeros(dims, np.float32 if kind == TensorProto.FLOAT else np.int64)


def _look(graph: Graph, images: str, sizes: str, detector: OnnxDetector, max_faces: int) -> FaceTensors:
    box = letterbox(graph, images, sizes, "photo", "size")
    detector.network.insert(graph, box.blob)
    return _largest(graph, _suppress(graph, _decode(graph, detector, box.scale)), max_faces)


def _decode(graph: Graph, detector: OnnxDetector, scale: str) -> FaceTensors:
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
    return FaceTensors(graph.op("Div", boxes, scale), scores, graph.op("Div", landmarks, scale))


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


def _suppress(graph: Graph, faces: FaceTensors) -> FaceTensors:
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


def _largest(graph: Graph, faces: FaceTensors, limit: int) -> FaceTensors:
    """The `limit` faces with the largest areas, still sorted by score."""
    areas = _areas(graph, faces)
    kept = graph.op("Min", vector(graph, size(graph, areas, 0)), ints(limit))
    graph.add("TopK", [areas, kept], ["largest_areas", "largest_index"])
    graph.add("TopK", ["largest_index", kept], ["kept_index", "kept_order"], largest=0)
    return faces.take(graph, "kept_index")


def _areas(graph: Graph, faces: FaceTensors) -> str:
    low, high = (graph.op("Slice", faces.boxes, ints(i), ints(i + 2), ints(1)) for i in (0, 2))
    sides = graph.op("Sub", high, low)
    return graph.op("Mul", element(graph, sides, 0, axis=1), element(graph, sides, 1, axis=1))


def _rank(graph: Graph, faces: FaceTensors, detection: Detection) -> str:
    """The rank of a look, FP32: the score of its largest face, or 1 if it found any face, and 0 if it found none."""
    scores = graph.op("Concat", faces.scores, np.zeros(1, np.float32), axis=0)
    if detection == "reference":
        return graph.op("Ceil", graph.op("ReduceMax", scores, keepdims=0))
    areas = graph.op("Concat", _areas(graph, faces), np.full(1, -1, np.float32), axis=0)
    return graph.op("Gather", scores, graph.op("ArgMax", areas, axis=0, keepdims=0))


def _keep(graph: Graph, faces: FaceTensors, rank: str, last: str) -> None:
    """Keep this look's faces if it ranks above the photo's earlier looks. The last look grows the outputs."""
    better = graph.op("Greater", rank, "best_rank_before")
    before, now = (size(graph, scores, 0) for scores in ("best_scores_before", faces.scores))
    first = graph.op("Where", better, before, np.int64(0))
    count = graph.op("Where", better, now, before)
    chosen = graph.op("Range", first, graph.op("Add", first, count), np.int64(1))
    joined = (graph.op("Concat", f"best_{name}_before", values, axis=0) for name, values in asdict(faces).items())
    kept = asdict(FaceTensors(*joined).take(graph, chosen))
    best_size = graph.op("Where", better, "size", "best_size_before")
    best_rank = graph.op("Max", rank, "best_rank_before")
    ended, going = (graph.op("Where", last, *pair) for pair in ((count, np.int64(0)), (np.int64(0), count)))
    grown = {name: _head(graph, values, ended) for name, values in kept.items()}
    grown["photo_index"] = graph.op("Expand", "photo", vector(graph, ended))
    grown["detection_size"] = graph.op("Expand", best_size, vector(graph, cast(graph, last, np.int64)))
    for name, values in grown.items():
        graph.op("Concat", f"{name}_before", values, name=f"{name}_after", axis=0)
    for name, values in kept.items():
        graph.op("Identity", _head(graph, values, going), name=f"best_{name}_after")
    graph.op("Where", last, np.int64(NOTHING_FOUND), best_size, name="best_size_after")
    graph.op("Where", last, np.float32(0), best_rank, name="best_rank_after")


def _head(graph: Graph, values: str, count: str) -> str:
    return graph.op("Slice", values, ints(0), vector(graph, count), ints(0))
