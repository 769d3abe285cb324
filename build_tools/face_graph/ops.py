"""Builds ONNX graphs, one operator a call."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17

Value = str | np.ndarray | np.generic
Shape = Sequence[int | str | None]
Signature = tuple[str, int, Shape]
"""Name, element type and shape of a graph's input or output."""


@dataclass
class Graph:
    """Nodes and constants of one graph or of the body of a Loop; names are unique in the whole model."""

    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    shapes: list[onnx.ValueInfoProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: Value, name: str | None = None, **attributes: Any) -> str:
        """Add an operator with one output and return the output's name; arrays become constants."""
        output = name or f"{kind}_{next(self.numbers)}"
        self.add(kind, inputs, [output], **attributes)
        return output

    def add(self, kind: str, inputs: Sequence[Value], outputs: Sequence[str], **attributes: Any) -> None:
        """Add an operator with named outputs; arrays among the inputs become constants."""
        names = [self._name(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, names, list(outputs), **attributes))

    def declare(self, name: str, kind: int, shape: Shape) -> None:
        """Declare the shape of a tensor that shape inference cannot derive."""
        self.shapes.append(helper.make_tensor_value_info(name, kind, shape))

    def body(self) -> "Graph":
        """An empty graph for a Loop inside this one; it may use this graph's names."""
        return Graph(self.numbers)

    def proto(self, name: str, inputs: Sequence[Signature], outputs: Sequence[Signature]) -> onnx.GraphProto:
        return helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(*signature) for signature in inputs],
            [helper.make_tensor_value_info(*signature) for signature in outputs],
            initializer=self.constants,
            value_info=self.shapes,
        )

    def _name(self, value: Value) -> str:
        if isinstance(value, str):
            return value
        name = f"constant_{next(self.numbers)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def ints(*values: int) -> NDArray[np.int64]:
    """Axes, shapes and indices in ONNX's type."""
    return np.array(values, np.int64)


def cast(graph: Graph, value: Value, dtype: type[np.generic]) -> str:
    return graph.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def element(graph: Graph, values: Value, index: int, axis: int = 0) -> str:
    """`values[index]` along `axis`, without that axis."""
    return graph.op("Gather", values, np.int64(index), axis=axis)


def size(graph: Graph, tensor: str, axis: int) -> str:
    """Length of one axis, as a scalar."""
    return element(graph, graph.op("Shape", tensor), axis)


def vector(graph: Graph, *scalars: Value) -> str:
    """INT64 scalars as one vector."""
    return graph.op("Concat", *(graph.op("Reshape", scalar, ints(1)) for scalar in scalars), axis=0)
