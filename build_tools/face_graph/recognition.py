"""Computes the embeddings of all faces, a few at a time."""

import numpy as np
from onnx import TensorProto

from build_tools.face_graph.alignment import Border, similarity, warp
from build_tools.face_graph.onnx_files import OnnxRecogniser
from build_tools.face_graph.ops import Graph, Signature, cast, ints, size, vector
from instantid.contract import EMBEDDING_SIZE


def recognise(graph: Graph, images: str, sizes: str, recogniser: OnnxRecogniser, border: Border) -> None:
    """Add the output `embeddings` to the graph, from its `landmarks` and `photo_index`.

    A Loop runs over groups of faces: there is no turn without faces, and memory is bounded for any number of faces.
    """
    body = graph.body()
    landmarks, photo_index = _group(body, recogniser.batch)
    crops = warp(body, images, sizes, photo_index, similarity(body, landmarks), border)
    blob = body.op("Sub", crops, np.float32(recogniser.mean))
    recogniser.network.insert(body, body.op("Mul", blob, np.float32(1 / recogniser.deviation)))
    embeddings = cast(body, recogniser.output, np.float32)
    body.op("Concat", "embeddings_before", embeddings, name="embeddings_after", axis=0)
    body.op("Identity", "recognising", name="recognise_on")
    carried: Signature = ("embeddings_before", TensorProto.FLOAT, [None, EMBEDDING_SIZE])
    proto = body.proto(
        "one_group",
        [("group", TensorProto.INT64, []), ("recognising", TensorProto.BOOL, []), carried],
        [("recognise_on", TensorProto.BOOL, []), ("embeddings_after", TensorProto.FLOAT, [None, EMBEDDING_SIZE])],
    )
    faces = graph.op("Add", size(graph, "photo_index", 0), np.int64(recogniser.batch - 1))
    groups = graph.op("Div", faces, np.int64(recogniser.batch))
    start = np.zeros((0, EMBEDDING_SIZE), np.float32)
    graph.add("Loop", [groups, "", start], ["embeddings"], body=proto)


def _group(graph: Graph, batch: int) -> tuple[str, str]:
    start = graph.op("Mul", "group", np.int64(batch))
    bounds = vector(graph, start), vector(graph, graph.op("Add", start, np.int64(batch)))
    landmarks, photo_index = (graph.op("Slice", name, *bounds, ints(0)) for name in ("landmarks", "photo_index"))
    return landmarks, photo_index
