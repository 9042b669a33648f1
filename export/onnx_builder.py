"""Collects ONNX nodes and initialisers, and closes them into a checked model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..errors import UnsupportedError

PROTOBUF_LIMIT = 2**31 - 1
"""Largest single-file ONNX model, in bytes."""


@dataclass(frozen=True)
class ValueSpec:
    """Type of a graph input or output.

    Attributes:
        name: Name of the value.
        dtype: Element type.
        shape: Sizes; a string names a dynamic axis.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str, ...]

    def proto(self) -> onnx.ValueInfoProto:
        """The ONNX form."""
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        return helper.make_tensor_value_info(self.name, element, list(self.shape))


@dataclass(frozen=True)
class Mark:
    """A point to roll back to."""

    nodes: int
    initialisers: frozenset[str]


@dataclass
class GraphBuilder:
    """Nodes in topological order, and the constants they read."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initialisers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], *, name: str, **attributes: Any
    ) -> None:
        """Appends a node; attributes that are None are left out."""
        given = {key: value for key, value in attributes.items() if value is not None}
        self.append(helper.make_node(op_type, list(inputs), list(outputs), name=name, **given))

    def append(self, node: onnx.NodeProto) -> None:
        """Appends a finished node.

        Raises:
            ValueError: Its name is taken.
        """
        if node.name in self.names:
            raise ValueError(f"two ONNX nodes are called {node.name!r}")
        self.names.add(node.name)
        self.nodes.append(node)

    def constant(self, name: str, array: np.ndarray) -> str:
        """Adds an initialiser; the same name with the same content is added once.

        Raises:
            ValueError: The name is taken by another content.
        """
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        held = self.initialisers.setdefault(name, tensor)
        if held is not tensor and (
            held.data_type != tensor.data_type or held.dims != tensor.dims or held.raw_data != tensor.raw_data
        ):
            raise ValueError(f"two initialisers are called {name!r}")
        return name

    def mark(self) -> Mark:
        """The present state, for `rollback`."""
        return Mark(len(self.nodes), frozenset(self.initialisers))

    def rollback(self, mark: Mark) -> None:
        """Forgets what was added since `mark`."""
        for node in self.nodes[mark.nodes :]:
            self.names.discard(node.name)
        del self.nodes[mark.nodes :]
        self.initialisers = {k: v for k, v in self.initialisers.items() if k in mark.initialisers}

    def finish(
        self, inputs: Sequence[ValueSpec], outputs: Sequence[tuple[str, ValueSpec]], *, opset: int, graph_name: str
    ) -> onnx.ModelProto:
        """Closes the graph.

        Args:
            inputs: Graph inputs in order.
            outputs: Pairs of (value that holds the output, its public name and type).
            opset: Version of the default operator set.
            graph_name: Name of the graph.

        Returns:
            The model, without dead nodes and initialisers.
        """
        self._rename_outputs(inputs, outputs)
        nodes = live_nodes(self.nodes, {spec.name for _, spec in outputs})
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            graph_name,
            [spec.proto() for spec in inputs],
            [spec.proto() for _, spec in outputs],
            [tensor for name, tensor in self.initialisers.items() if name in used],
        )
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="secateur",
        )
        if model.ByteSize() > PROTOBUF_LIMIT:
            raise UnsupportedError(
                f"the ONNX model has {model.ByteSize()} bytes",
                why="an ONNX file holds at most 2 GiB",
                hint="prune further before exporting",
            )
        return model

    def _rename_outputs(self, inputs: Sequence[ValueSpec], outputs: Sequence[tuple[str, ValueSpec]]) -> None:
        """Gives output values their public names: by renaming, or by Identity where a value has two roles."""
        produced = {name for node in self.nodes for name in node.output}
        taken = produced | {spec.name for spec in inputs} | set(self.initialisers)
        renamed: dict[str, str] = {}
        for value, spec in outputs:
            if value == spec.name:
                continue
            if value in produced and value not in renamed and spec.name not in taken:
                renamed[value] = spec.name
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        for value, spec in outputs:
            source = renamed.get(value, value)
            if source == spec.name:
                continue
            if spec.name in taken:
                raise ValueError(f"the output name {spec.name!r} is taken by another value")
            self.node("Identity", [source], [spec.name], name=f"{spec.name}/identity")


def live_nodes(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that `outputs` depend on, in their order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
