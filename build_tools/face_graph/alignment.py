"""Cuts faces out and turns them upright, like insightface's `norm_crop` and cv2 4.11's `warpAffine`."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from build_tools.face_graph.onnx_files import CROP
from build_tools.face_graph.ops import Graph, cast, element, ints
from instantid.contract import CANVAS

TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)
"""ArcFace's landmarks in the crop: image-left eye, image-right eye, nose, image-left and -right mouth corner."""
_POSITION_STEPS = 1024
"""cv2 rounds positions to 1/1024 pixel (AB_SCALE)..."""
_WEIGHT_STEPS = 32
"""...and then truncates them to 1/32 pixel (INTER_TAB_SIZE)."""
_POSITION_LIMIT = 2**20
"""Positions are clipped to this many pixels, far outside the photo, to keep the integers in range."""
Border = Literal["black", "edge"]
"""What a crop shows outside the photo: zeros, as in insightface, or the photo's outermost pixels."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """Names of FP64 [f] in `x' = cosine * x - sine * y + x_shift`, `y' = sine * x + cosine * y + y_shift`.

    Cosine and sine include the scale.
    """

    cosine: str
    sine: str
    x_shift: str
    y_shift: str


def similarity(graph: Graph, landmarks: str) -> Similarity:
    """Least-squares similarity from landmarks FP32 [f, 5, 2] to the template, without reflection (Umeyama, 1991).

    In the plane the optimal rotation needs no singular values: with centred points as complex numbers it is
    `sum(conj(p) * q) / sum(|p|^2)`.
    """
    points = cast(graph, landmarks, np.float64)
    template = TEMPLATE.astype(np.float64)
    goal = template.mean(axis=0)
    mean = graph.op("ReduceMean", points, axes=[1], keepdims=1)
    centred = graph.op("Sub", points, mean)
    spread = _sum(graph, graph.op("Mul", centred, centred))
    along = _sum(graph, graph.op("Mul", centred, template - goal))
    across = _sum(graph, graph.op("Mul", centred, (template - goal)[:, ::-1] * [1, -1]))
    cosine, sine = graph.op("Div", along, spread), graph.op("Div", across, spread)
    x, y = (element(graph, graph.op("Squeeze", mean, ints(1)), i, axis=1) for i in (0, 1))
    moved_x = graph.op("Sub", graph.op("Mul", cosine, x), graph.op("Mul", sine, y))
    moved_y = graph.op("Add", graph.op("Mul", sine, x), graph.op("Mul", cosine, y))
    return Similarity(cosine, sine, *(graph.op("Sub", goal[i], m) for i, m in enumerate((moved_x, moved_y))))


def warp(
    graph: Graph, images: str, sizes: str, photo_index: str, transform: Similarity, border: Border = "black"
) -> str:
    """Crops FP32 [f, 3, 112, 112] RGB with integer values in [0, 255].

    Positions are rounded to 1/32 of a pixel and weights are integers, exactly as in cv2.
    """
    x, y = _positions(graph, transform)
    photo_sizes = graph.op("Gather", sizes, photo_index)
    height, width = (_per_face(graph, element(graph, photo_sizes, i, axis=1), 2) for i in (0, 1))
    photo = _per_face(graph, photo_index, 2)
    (x, x_part), (y, y_part) = _split(graph, x), _split(graph, y)
    sums = None
    for down, y_weight in ((0, _rest(graph, y_part)), (1, y_part)):
        for right, x_weight in ((0, _rest(graph, x_part)), (1, x_part)):
            row, column = (graph.op("Add", near, np.int64(step)) for near, step in ((y, down), (x, right)))
            weight = graph.op("Mul", y_weight, x_weight)
            part = _tap(graph, images, (photo, row, column), (height, width), weight, border)
            sums = graph.op("Add", sums, part) if sums else part
    half = graph.op("Add", sums or "", np.float32(_WEIGHT_STEPS**2 / 2))
    return graph.op("Floor", graph.op("Mul", half, np.float32(1 / _WEIGHT_STEPS**2)))


def _positions(graph: Graph, forward: Similarity) -> tuple[str, str]:
    """x and y in the photo of each crop pixel, INT64 [f, 112, 112] in steps of 1/32 pixel, plus the limit."""
    cosine, sine = forward.cosine, forward.sine
    square = graph.op("Add", graph.op("Mul", cosine, cosine), graph.op("Mul", sine, sine))
    cosine, sine = graph.op("Div", cosine, square), graph.op("Div", sine, square)
    minus = graph.op("Neg", sine)
    x_shift = graph.op("Neg", _plus(graph, cosine, forward.x_shift, sine, forward.y_shift))
    y_shift = graph.op("Neg", _plus(graph, minus, forward.x_shift, cosine, forward.y_shift))
    x = _grid(graph, cosine, sine, x_shift)
    y = _grid(graph, minus, cosine, y_shift)
    return x, y


def _grid(graph: Graph, by_column: str, by_row: str, shift: str) -> str:
    steps = np.arange(CROP, dtype=np.float64)
    rows = graph.op("Add", graph.op("Mul", _per_face(graph, by_row, 1), steps), _per_face(graph, shift, 1))
    columns = graph.op("Mul", _per_face(graph, by_column, 1), steps)
    rows, columns = _fixed(graph, rows, 2), _fixed(graph, columns, 1)
    offset = _POSITION_LIMIT * _POSITION_STEPS + _POSITION_STEPS // _WEIGHT_STEPS // 2
    position = graph.op("Add", graph.op("Add", rows, columns), np.int64(offset))
    return graph.op("Div", position, np.int64(_POSITION_STEPS // _WEIGHT_STEPS))


def _fixed(graph: Graph, positions: str, axis: int) -> str:
    """Positions as integers. Coinciding landmarks have no transform; their positions are set outside the photo."""
    limit = np.float64(_POSITION_LIMIT * _POSITION_STEPS // 4)
    scaled = graph.op("Round", graph.op("Mul", positions, np.float64(_POSITION_STEPS)))
    known = graph.op("Where", graph.op("IsNaN", scaled), limit, graph.op("Clip", scaled, -limit, limit))
    return graph.op("Unsqueeze", cast(graph, known, np.int64), ints(axis))


def _split(graph: Graph, position: str) -> tuple[str, str]:
    """Whole pixels INT64 and the FP32 weight of the next pixel, in [0, 32)."""
    shifted = graph.op("Div", position, np.int64(_WEIGHT_STEPS))
    part = graph.op("Sub", position, graph.op("Mul", shifted, np.int64(_WEIGHT_STEPS)))
    return graph.op("Sub", shifted, np.int64(_POSITION_LIMIT)), cast(graph, part, np.float32)


def _tap(
    graph: Graph, images: str, index: tuple[str, str, str], extent: tuple[str, str], weight: str, border: Border
) -> str:
    """Weighted pixels FP32 [f, 3, 112, 112] of one of the four neighbours."""
    inside, number = weight, index[0]
    for position, limit in zip(index[1:], extent, strict=True):
        last = graph.op("Sub", limit, np.int64(1))
        kept = graph.op("Min", graph.op("Max", position, np.int64(0)), last)
        number = graph.op("Add", graph.op("Mul", number, np.int64(CANVAS)), kept)
        if border == "black":
            inside = graph.op("Mul", inside, cast(graph, graph.op("Equal", kept, position), np.float32))
    pixels = graph.op("Gather", graph.op("Reshape", images, ints(-1, 3)), number)
    planes = cast(graph, graph.op("Transpose", pixels, perm=[0, 3, 1, 2]), np.float32)
    return graph.op("Mul", planes, graph.op("Unsqueeze", inside, ints(1)))


def _rest(graph: Graph, part: str) -> str:
    return graph.op("Sub", np.float32(_WEIGHT_STEPS), part)


def _plus(graph: Graph, a: str, b: str, c: str, d: str) -> str:
    return graph.op("Add", graph.op("Mul", a, b), graph.op("Mul", c, d))


def _sum(graph: Graph, values: str) -> str:
    return graph.op("ReduceSum", values, ints(1, 2), keepdims=0)


def _per_face(graph: Graph, values: str, axes: int) -> str:
    """Reshape [f] to [f, 1, ...] with so many more axes."""
    return graph.op("Reshape", values, ints(-1, *[1] * axes))
