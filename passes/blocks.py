"""Whole residual blocks that can go: the branch disappears, the skip connection remains.

    y = x + f(x)    becomes    y = x

A block is an addition of a value x and of a branch f(x), where x reaches the addition unchanged (the skip is the
identity), both have the same shape, and nothing of the branch is read anywhere else. The branch may read further
values, such as an attention mask.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, fx, ops
from torch._ops import OpOverload

from ..errors import UserError, did_you_mean
from .labels.flow import canonical_names
from .labels.groups import Group
from .opnames import name_of
from .program import Program
from .tidy import tidy

_ADD = ("aten.add.Tensor", "operator.add")


@dataclass(frozen=True)
class Block:
    """A residual block that can be dropped.

    Attributes:
        name: Module path that its layers share; that of its last convolution or linear layer where there is none, or
            where several blocks share one.
        add: Node that adds branch and skip.
        skip: Which of the addition's operands stays, 0 or 1; another node may be put there.
        branch: Nodes of the branch, in the order of the graph.
        layers: Module paths of its layers, in the order of the graph.
        tensors: Canonical names of the parameters and buffers that nothing else uses.
    """

    name: str
    add: str
    skip: int
    branch: tuple[str, ...]
    layers: tuple[str, ...]
    tensors: frozenset[str]

    @cached_property
    def nodes(self) -> frozenset[str]:
        """All nodes that go with it: the branch and the addition."""
        return frozenset((*self.branch, self.add))

    def holds(self, group: Group) -> bool:
        """Whether all of a group goes with the block."""
        return all(member.tensor in self.tensors for member in group.members)


def residual_blocks(program: Program) -> tuple[Block, ...]:
    """The blocks of a program, in the order of the graph; of blocks inside each other the inner ones."""
    found: list[tuple[fx.Node, int, list[fx.Node]]] = []
    taken: set[fx.Node] = set()
    for node in program.graph.nodes:
        parts = _branch_of(program, node)
        if parts is not None and taken.isdisjoint(parts[1]):
            taken.update(parts[1], [node])
            found.append((node, *parts))
    paths = [_layers(program, branch) for _, _, branch in found]
    names = [_shared_path(layers) for layers in paths]
    names = [
        name if name and names.count(name) == 1 else _last_with_filters(program, layers)
        for name, layers in zip(names, paths, strict=True)
    ]
    return tuple(
        Block(name, add.name, skip, tuple(n.name for n in branch), layers, _own_tensors(program, branch))
        for name, layers, (add, skip, branch) in zip(names, paths, found, strict=True)
    )


def drop_blocks(program: Program, names: Collection[str], blocks: Sequence[Block] | None = None) -> Program:
    """The program without the branches of these blocks; a function of its arguments alone.

    Args:
        program: The program; not changed.
        names: Names of blocks.
        blocks: The blocks of the program from which this one was made by `apply` or `implant`; those of the program
            itself if None. Nodes keep their names in both.

    Raises:
        UserError: There is no such block.
    """
    smaller = program.clone(step="drop blocks")
    graph = smaller.graph
    nodes = {node.name: node for node in graph.nodes}
    for block in find_blocks(program, names, blocks):
        add = nodes[block.add]
        skip = add.args[block.skip]
        assert isinstance(skip, fx.Node)
        add.replace_all_uses_with(skip)
        graph.erase_node(add)
    return replace(smaller, graph_module=tidy(smaller.graph_module))


def silence_blocks(program: Program, names: Collection[str]) -> None:
    """Adds zeros in the place of these blocks' branches, in place: the oracle of `drop_blocks`.

    Raises:
        UserError: There is no such block.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    for block in find_blocks(program, names):
        add = nodes[block.add]
        end = add.args[1 - block.skip]
        assert isinstance(end, fx.Node)
        with program.graph.inserting_before(add):
            nothing = program.graph.call_function(ops.aten.zeros_like.default, (end,))
        nothing.meta = dict(end.meta)
        add.update_arg(1 - block.skip, nothing)
    program.graph_module.recompile()


def find_blocks(program: Program, names: Collection[str], blocks: Sequence[Block] | None = None) -> list[Block]:
    """The blocks of these names.

    Raises:
        UserError: There is no such block.
    """
    by_name = {block.name: block for block in (residual_blocks(program) if blocks is None else blocks)}
    for name in names:
        if name not in by_name:
            raise UserError(
                f"no residual block is called {name!r}{did_you_mean(name, by_name)}",
                where="blocks",
                why="a block is a branch whose sum with its own input, unchanged, is all that is read of it",
                hint=f"there is: {', '.join(by_name)}" if by_name else "this network has none",
            )
    return [by_name[name] for name in dict.fromkeys(names)]


def _branch_of(program: Program, add: fx.Node) -> tuple[int, list[fx.Node]] | None:
    """Side of the skip, and branch, of a block that ends in this addition; None if none does."""
    if name_of(add.target) not in _ADD or len(add.args) != 2 or add.kwargs or len(add.all_input_nodes) != 2:
        return None
    for side in (0, 1):
        skip, end = add.args[side], add.args[1 - side]
        assert isinstance(skip, fx.Node) and isinstance(end, fx.Node)
        if list(end.users) != [add] or not _alike(skip, end, add):
            continue
        branch = _between(skip, end)
        inside = {*branch, add}
        closed = all(user in inside for node in branch for user in node.users)
        if branch and closed and _layers(program, branch) and not any(_writes(node) for node in inside):
            return side, branch
    return None


def _between(skip: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes on all ways from one value to another, in the order of the graph; the last among them."""
    before, stack = set(), [end]
    while stack:
        node = stack.pop()
        if node not in before and node is not skip:
            before.add(node)
            stack.extend(node.all_input_nodes)
    reached, found = {skip}, []
    for node in skip.graph.nodes:
        if node in before and any(source in reached for source in node.all_input_nodes):
            reached.add(node)
            found.append(node)
    return found if end in reached else []


def _alike(*nodes: fx.Node) -> bool:
    """Whether values have one shape and type."""
    values = [node.meta.get("val") for node in nodes]
    kinds = {(value.shape, value.dtype) if isinstance(value, Tensor) else None for value in values}
    return len(kinds) == 1 and None not in kinds


def _layers(program: Program, branch: Sequence[fx.Node]) -> tuple[str, ...]:
    """Paths of the layers with parameters that a branch calls."""
    calls = dict.fromkeys(str(node.target) for node in branch if node.op == "call_module")
    return tuple(path for path in calls if any(True for _ in program.graph_module.get_submodule(path).parameters()))


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _shared_path(layers: Sequence[str]) -> str:
    parts = [path.split(".") for path in layers]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def _last_with_filters(program: Program, layers: Sequence[str]) -> str:
    """Path of the last convolution or linear layer; of the last layer if there is none."""
    weights = {path: getattr(program.graph_module.get_submodule(path), "weight", None) for path in layers}
    multiplying = [path for path, weight in weights.items() if isinstance(weight, Tensor) and weight.ndim > 1]
    return (multiplying or list(layers))[-1]


def _own_tensors(program: Program, branch: Sequence[fx.Node]) -> frozenset[str]:
    """Canonical names of the tensors that no node outside of a branch uses."""
    names, inside = canonical_names(program.graph_module), set(branch)
    used: dict[str, bool] = {}
    for node in program.graph.nodes:
        for tensor in _tensors(program, node):
            own = node in inside or (node.op == "get_attr" and all(user in inside for user in node.users))
            used[names[id(tensor)]] = used.get(names[id(tensor)], True) and own
    return frozenset(name for name, own in used.items() if own)


def _tensors(program: Program, node: fx.Node) -> list[Tensor]:
    """The tensors of the program that a node uses."""
    if node.op == "call_module":
        return list(program.graph_module.get_submodule(str(node.target)).state_dict(keep_vars=True).values())
    if node.op == "get_attr":
        *path, leaf = str(node.target).split(".")
        value = getattr(program.graph_module.get_submodule(".".join(path)), leaf)
        return [value] if isinstance(value, Tensor) else []
    return []
