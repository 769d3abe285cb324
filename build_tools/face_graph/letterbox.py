"""Fits a photo into the top-left corner of a square, with the same result as cv2 4.11's INTER_LINEAR on uint8.

cv2 interpolates columns, then rows, with 11-bit integer weights. The graph computes the same integers, so the results
are equal to the bit. When it halves a photo, cv2 takes the mean of four pixels instead, which gives the same numbers.
"""

from dataclasses import dataclass

import numpy as np

from build_tools.face_graph.ops import Graph, cast, element, ints, vector
from instantid.contract import CANVAS

_COEFFICIENT = 2048
"""cv2's INTER_RESIZE_COEF_SCALE."""
_MEAN, _DEVIATION = 127.5, 128.0


@dataclass(frozen=True, slots=True)
class Letterbox:
    """`blob` FP32 [1, 3, side, side] RGB, normalised; `scale` FP32 scalar, resized height over photo height."""

    blob: str
    scale: str


@dataclass(frozen=True, slots=True)
class _Taps:
    """For each resized row or column: the two source rows or columns, and their INT32 weights."""

    near: str
    far: str
    near_weight: str
    far_weight: str


def letterbox(graph: Graph, images: str, sizes: str, photo: str, side: str) -> Letterbox:
    """Photo number `photo` of `images` UINT8 [n, CANVAS, CANVAS, 3], fitted into a square of `side` pixels.

    The size is that of insightface's `SCRFD.detect`: the longer side becomes `side`, the other is rounded down.
    """
    size = graph.op("Clip", graph.op("Gather", sizes, photo), np.int64(1), np.int64(CANVAS))
    height, width = element(graph, size, 0), element(graph, size, 1)
    new_height, new_width = _fit(graph, height, width, side)
    scale = graph.op("Div", cast(graph, new_height, np.float64), cast(graph, height, np.float64))
    rows = _taps(graph, height, new_height, clamp=False)
    columns = _taps(graph, width, new_width, clamp=True)
    near, far = (_blend_columns(graph, images, photo, row, columns) for row in (rows.near, rows.far))
    pixels = _blend_rows(graph, near, far, rows)
    return Letterbox(_blob(graph, pixels, side, new_height, new_width), cast(graph, scale, np.float32))


def _fit(graph: Graph, height: str, width: str, side: str) -> tuple[str, str]:
    ratio = graph.op("Div", cast(graph, height, np.float64), cast(graph, width, np.float64))
    long = cast(graph, side, np.float64)
    shrunk_height = cast(graph, graph.op("Mul", long, ratio), np.int64)
    shrunk_width = cast(graph, graph.op("Div", long, ratio), np.int64)
    tall = graph.op("Greater", ratio, np.float64(1))
    new_height = graph.op("Where", tall, side, shrunk_height)
    new_width = graph.op("Where", tall, shrunk_width, side)
    return graph.op("Max", new_height, np.int64(1)), graph.op("Max", new_width, np.int64(1))


def _taps(graph: Graph, before: str, after: str, *, clamp: bool) -> _Taps:
    """cv2 clamps positions to the outer columns (`clamp`), but not to the outer rows."""
    ratio = graph.op("Div", cast(graph, after, np.float64), cast(graph, before, np.float64))
    step = graph.op("Div", np.float64(1), ratio)
    steps = cast(graph, graph.op("Range", np.int64(0), after, np.int64(1)), np.float64)
    centres = graph.op("Mul", graph.op("Add", steps, np.float64(0.5)), step)
    position = cast(graph, graph.op("Sub", centres, np.float64(0.5)), np.float32)
    last = graph.op("Sub", before, np.int64(1))
    if clamp:
        position = graph.op("Clip", position, np.float32(0), cast(graph, last, np.float32))
    floor = graph.op("Floor", position)
    fraction = graph.op("Sub", position, floor)
    weights = [graph.op("Mul", part, np.float32(_COEFFICIENT)) for part in (_rest(graph, fraction), fraction)]
    near_weight, far_weight = (cast(graph, graph.op("Round", weight), np.int32) for weight in weights)
    index = cast(graph, floor, np.int64)
    near = graph.op("Clip", index, np.int64(0), last)
    far = graph.op("Clip", graph.op("Add", index, np.int64(1)), np.int64(0), last)
    return _Taps(near, far, near_weight, far_weight)


def _rest(graph: Graph, fraction: str) -> str:
    return graph.op("Sub", np.float32(1), fraction)


def _blend_columns(graph: Graph, images: str, photo: str, rows: str, columns: _Taps) -> str:
    """Rows of the photo, resized along x, in 11-bit fixed point without its last 4 bits: INT32 [3, new width, height].

    After the two transpositions all steps run along contiguous memory; the Reshape keeps onnxruntime from fusing them
    into one that is ten times slower. The sums are exact in FP32, and the cast truncates them.
    """
    numbers = graph.op("Add", rows, graph.op("Mul", photo, np.int64(CANVAS)))
    taken = graph.op("Gather", graph.op("Reshape", images, ints(-1, CANVAS, 3)), numbers)
    planes = graph.op("Reshape", graph.op("Transpose", taken, perm=[2, 0, 1]), ints(3, -1, CANVAS))
    upright = graph.op("Transpose", planes, perm=[0, 2, 1])
    near, far = (
        graph.op(
            "Mul",
            cast(graph, graph.op("Gather", upright, index, axis=1), np.float32),
            graph.op("Unsqueeze", graph.op("Div", cast(graph, weight, np.float32), np.float32(16)), ints(1)),
        )
        for index, weight in ((columns.near, columns.near_weight), (columns.far, columns.far_weight))
    )
    return cast(graph, graph.op("Add", near, far), np.int32)


def _blend_rows(graph: Graph, near: str, far: str, rows: _Taps) -> str:
    """Resized planes, UINT8 [3, new height, new width]; the cast truncates `sum / 4 + 1 / 2` as cv2's shift does."""
    parts = [
        graph.op("Div", graph.op("Mul", part, weight), np.int32(65536))
        for part, weight in ((near, rows.near_weight), (far, rows.far_weight))
    ]
    quarter = graph.op("Mul", cast(graph, graph.op("Add", *parts), np.float32), np.float32(0.25))
    pixels = cast(graph, graph.op("Add", quarter, np.float32(0.5)), np.uint8)
    return graph.op("Transpose", pixels, perm=[0, 2, 1])


def _blob(graph: Graph, pixels: str, side: str, height: str, width: str) -> str:
    centred = graph.op("Sub", cast(graph, pixels, np.float32), np.float32(_MEAN))
    normalised = graph.op("Mul", centred, np.float32(1 / _DEVIATION))
    zero = np.int64(0)
    pads = vector(graph, zero, zero, zero, zero, graph.op("Sub", side, height), graph.op("Sub", side, width))
    padded = graph.op("Pad", normalised, pads, np.float32(-_MEAN / _DEVIATION))
    return graph.op("Unsqueeze", padded, ints(0))
