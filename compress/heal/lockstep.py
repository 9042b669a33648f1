"""Two networks on the same data, one node at a time, so that the layers of one can be fitted to those of the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, fx

from ...passes.program import Program
from ...passes.shapes import flatten_inputs
from ..sensitivity.batches import Batch


def schedule(graph: fx.Graph, after: Mapping[str, Iterable[str]]) -> list[fx.Node]:
    """The nodes in an order that also lets some nodes wait for others.

    Args:
        graph: The graph.
        after: By the name of a node, names of nodes that come before it though it does not read them. They must not
            depend on it.
    """
    by_name = {node.name: node for node in graph.nodes}
    order: dict[fx.Node, None] = {}
    for last in graph.nodes:
        stack = [last]
        while stack:
            node = stack[-1]
            extra = [by_name[name] for name in after.get(node.name, ()) if name in by_name]
            missing = [other for other in (*node.all_input_nodes, *extra) if other not in order]
            if missing:
                stack.extend(missing)
            else:
                order[stack.pop()] = None
    return list(order)


class Lockstep:
    """All batches on their way through a network, one node at a time."""

    def __init__(self, program: Program, batches: Sequence[Batch], after: Mapping[str, Iterable[str]]) -> None:
        """Starts before the first node.

        Args:
            program: The network, in evaluation mode.
            batches: The data.
            after: As that of `schedule`: values that are wanted (`value`) when a node is about to run.
        """
        order = schedule(program.graph, after)
        self._ahead = deque(order)
        last_use = {value: node for node in order for value in node.all_input_nodes}
        self._dead: dict[fx.Node, list[fx.Node]] = {}
        for value, node in last_use.items():
            self._dead.setdefault(node, []).append(value)
        self._runs = [_Run(program, batch) for batch in batches]
        self._nodes = {node.name: node for node in order}

    def inputs_of(self, name: str) -> list[Tensor]:
        """What the node of this name is about to read, by batch."""
        while self._ahead[0].name != name:
            self._step()
        return [run.env[self._ahead[0].all_input_nodes[0]] for run in self._runs]

    def outputs_of(self, name: str) -> list[Tensor]:
        """What the node of this name computes, by batch."""
        self.inputs_of(name)
        node = self._step()
        return [run.env[node] for run in self._runs]

    def value(self, name: str) -> list[Tensor]:
        """A value that was computed and is still to be read, by batch."""
        return [run.env[self._nodes[name]] for run in self._runs]

    def values(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Runs to the end and yields the values of these nodes, of each batch, as they are computed."""
        while self._ahead and self._ahead[0].op != "output":
            name = self._ahead[0].name
            node = self._step()
            if name in names:
                for run in self._runs:
                    yield name, run.env[node]

    def _step(self) -> fx.Node:
        node = self._ahead.popleft()
        for run in self._runs:
            run.env[node] = run.run_node(node)
            for dead in self._dead.get(node, ()):
                run.env.pop(dead, None)
        return node


class _Run(fx.Interpreter):
    """One batch on its way through a network."""

    def __init__(self, program: Program, batch: Batch) -> None:
        super().__init__(program.graph_module)
        self.args_iter = iter(flatten_inputs(program.graph_module, batch.args, dict(batch.kwargs)))
