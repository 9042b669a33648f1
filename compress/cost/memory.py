"""Activation memory: what is alive at once while the network runs, as a function of the widths.

Each value lives from the node that computes it to its last reader. An operation that only looks at its input in
another shape, or works on each element of a value that nobody else reads, writes into the memory of its input; runtimes
fuse it or run it in place. The peak is the largest sum over all moments; a limit on it is a limit on every moment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...passes.blocks import Block
from ...passes.program import Program
from .axes import Axis, AxisReader
from .terms import Column, product_term

INTEGER_BYTES, FLOAT_BYTES = 1, 4
_VIEWS = {"view", "reshape", "flatten", "permute", "transpose", "unsqueeze", "squeeze", "expand", "detach", "alias"}
_POINTWISE = {"relu", "relu_", "hardtanh", "hardtanh_", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "clamp"}
_MODULES = (_BatchNorm, nn.Dropout, nn.ReLU, nn.ReLU6, nn.Identity)


def memory_columns(
    program: Program, *, bytes_per_element: int = INTEGER_BYTES, apart: Sequence[Block] = ()
) -> tuple[Column, ...]:
    """Bytes alive at each moment, for one sample; moments that others exceed at all widths are left out.

    Args:
        program: The program.
        bytes_per_element: 1 on integer grids, 4 in FP32.
        apart: Blocks that may go: moments outside of them stay, whatever is alive inside.
    """
    reader = AxisReader(program)
    batch = _batch(program)
    moments = {name: _summed([reader.elements(node) for node in alive]) for name, alive in _alive(program.graph)}
    columns = []
    inside = {name for block in apart for name in block.nodes}
    parts = [{name: m for name, m in moments.items() if name in block.nodes} for block in apart]
    for part in ({name: m for name, m in moments.items() if name not in inside}, *parts):
        for name, (fixed, slope) in _largest(part).items():
            columns.append(Column(moment(name), (product_term([(fixed, slope)], bytes_per_element / batch),)))
    return tuple(columns)


def moment(node: str) -> str:
    """What the cost of the values alive while a node runs is called."""
    return f"memory at {node}"


def peak(columns: tuple[Column, ...], widths: np.ndarray) -> float:
    """Largest of the moments, in bytes, at widths int64 [groups]."""
    return max((float(column.cost(widths[None])[0]) for column in columns), default=0.0)


def _alive(graph: fx.Graph) -> list[tuple[str, list[fx.Node]]]:
    """The values that are alive while each node runs."""
    nodes = [node for node in graph.nodes if node.op not in ("get_attr", "output") and _is_tensor(node)]
    place = {node: i for i, node in enumerate(graph.nodes)}
    home: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    for node in nodes:
        source = next((other for other in node.all_input_nodes if other in home), None)
        home[node] = home[source] if source is not None and _in_place(node, source) else node
        end = max((place[user] for user in node.users), default=place[node])
        last[home[node]] = max(last.get(home[node], 0), end)
    owners = list(last)
    return [
        (node.name, [owner for owner in owners if place[owner] <= place[node] <= last[owner]])
        for node in nodes
        if home[node] is node
    ]


def _in_place(node: fx.Node, source: fx.Node) -> bool:
    if node.op == "call_module":
        owner = node.graph.owning_module
        pointwise = owner is not None and isinstance(owner.get_submodule(str(node.target)), _MODULES)
        return pointwise and len(source.users) == 1
    name = getattr(node.target, "_opname", getattr(node.target, "__name__", ""))
    return name in _VIEWS or (name in _POINTWISE and len(source.users) == 1)


def _summed(axes: list[Axis]) -> Axis:
    slope = np.sum([axis[1] for axis in axes], axis=0)
    return sum(axis[0] for axis in axes), tuple(int(s) for s in slope)


def _largest(moments: dict[str, Axis]) -> dict[str, Axis]:
    """The moments that no other one exceeds in every part."""
    kept: dict[str, Axis] = {}
    rows = {name: np.array([fixed, *slope]) for name, (fixed, slope) in moments.items()}
    for name, row in rows.items():
        beaten = any(
            (other >= row).all() and ((other > row).any() or n in kept) for n, other in rows.items() if n != name
        )
        if not beaten:
            kept[name] = moments[name]
    return kept


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _batch(program: Program) -> int:
    value = next((node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"), None)
    return int(value.shape[0]) if isinstance(value, Tensor) and value.ndim else 1
