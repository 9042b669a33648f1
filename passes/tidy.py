"""What a rewrite leaves behind, taken away."""

from __future__ import annotations

from torch import fx


def tidy(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Drops dead nodes, and with them modules, parameters and buffers that no node uses.

    Returns:
        A graph module over the same graph, layers and tensors.
    """
    # By itself torch keeps whatever may draw random numbers, such as attention with its dropout, and all that it reads.
    graph_module.graph.eliminate_dead_code(is_impure_node=lambda node: node.is_impure(impure_random=False))
    graph_module.graph.lint()
    training = graph_module.training
    result = fx.GraphModule(graph_module, graph_module.graph)
    result.training = training
    return result
