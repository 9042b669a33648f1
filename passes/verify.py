"""Consistency of a program: what has to hold after every rewrite. A violation is a bug of ours, not the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .modulespec import spec_of
from .opnames import is_known
from .program import Program
from .shapes import batch_size, resize_batch, values_of


class InvalidProgram(Exception):
    """A program that contradicts itself."""


def verify(program: Program) -> None:
    """Checks a program.

    The graph is well-formed and holds no dead node; it calls known operations and layers of known types; every layer,
    parameter and buffer is used; tensors have the shapes that their layers' attributes say; shapes fit at the example's
    batch size and, where the batch is dynamic, at another one.

    Raises:
        InvalidProgram: The first thing that does not hold.
    """
    graph_module = program.graph_module
    _check_graph(graph_module)
    _check_targets(graph_module)
    _check_used(graph_module)
    for path in sorted({str(node.target) for node in program.graph.find_nodes(op="call_module")}):
        _check_layer(path, graph_module.get_submodule(path))
    _check_shapes(program)


def _check_graph(graph_module: fx.GraphModule) -> None:
    try:
        graph_module.graph.lint()
    except Exception as error:
        raise InvalidProgram(f"the graph is malformed: {error}") from error
    for node in graph_module.graph.nodes:
        if not node.users and not node.is_impure():
            raise InvalidProgram(f"dead node: nothing uses {node.name}")


def _check_targets(graph_module: fx.GraphModule) -> None:
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    tensors = {name for name, _ in _named_tensors(graph_module)}
    for node in graph_module.graph.nodes:
        if node.op == "call_method" or (node.op == "call_function" and not is_known(node.target)):
            raise InvalidProgram(f"{node.name} calls {node.target}, which no program may call")
        if node.op == "get_attr" and node.target not in tensors:
            raise InvalidProgram(f"{node.name} reads {node.target}, which is no parameter or buffer")
        if node.op != "call_module":
            continue
        if node.target not in modules:
            raise InvalidProgram(f"{node.name} calls {node.target}, which does not exist")
        if spec_of(modules[node.target]) is None:
            kind = type(modules[node.target]).__name__
            raise InvalidProgram(f"{node.target} is a {kind}, a type that no program may hold")


def _check_used(graph_module: fx.GraphModule) -> None:
    called = {str(node.target) for node in graph_module.graph.find_nodes(op="call_module")}
    read = {str(node.target) for node in graph_module.graph.find_nodes(op="get_attr")}
    for name, _ in _named_tensors(graph_module):
        if name not in read and not any(name.startswith(f"{path}.") for path in called):
            raise InvalidProgram(f"unused: no node uses {name}")
    for path, module in graph_module.named_modules(remove_duplicate=False):
        plain = type(module) is nn.Module or module is graph_module
        if not plain and not any(path == p or path.startswith(f"{p}.") for p in called):
            raise InvalidProgram(f"unused: no node calls {path}")


def _named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _check_layer(path: str, module: nn.Module) -> None:
    rule = next((rule for kind, rule in _SHAPES.items() if isinstance(module, kind)), None)
    if rule is None:
        return
    try:
        expected = rule(module)
    except ZeroDivisionError:
        raise InvalidProgram(f"{path} has 0 groups") from None
    own = {**module._parameters, **module._buffers}
    for name, shape in expected.items():
        tensor = own.get(name)
        if tensor is not None and tuple(tensor.shape) != tuple(shape):
            raise InvalidProgram(f"{path}.{name} has shape {list(tensor.shape)}, its layer says {list(shape)}")


def _convolution_shapes(module: Any) -> Mapping[str, tuple[int, ...]]:
    inputs, outputs, groups = module.in_channels, module.out_channels, module.groups
    if inputs % groups or outputs % groups:
        raise InvalidProgram(f"{inputs} inputs and {outputs} outputs do not divide into {groups} groups")
    channels = (inputs, outputs // groups) if isinstance(module, _ConvTransposeNd) else (outputs, inputs // groups)
    return {"weight": (*channels, *module.kernel_size), "bias": (outputs,)}


def _norm_shapes(module: Any) -> Mapping[str, tuple[int, ...]]:
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))


def _group_norm_shapes(module: Any) -> Mapping[str, tuple[int, ...]]:
    if module.num_channels % module.num_groups:
        raise InvalidProgram(f"{module.num_channels} channels do not divide into {module.num_groups} groups")
    return dict.fromkeys(("weight", "bias"), (module.num_channels,))


_SHAPES: Mapping[type[nn.Module], Callable[[Any], Mapping[str, tuple[int, ...]]]] = {
    _ConvNd: _convolution_shapes,
    nn.Linear: lambda m: {"weight": (m.out_features, m.in_features), "bias": (m.out_features,)},
    _NormBase: _norm_shapes,
    nn.LayerNorm: lambda m: dict.fromkeys(("weight", "bias"), tuple(m.normalized_shape)),
    nn.GroupNorm: _group_norm_shapes,
    nn.Embedding: lambda m: {"weight": (m.num_embeddings, m.embedding_dim)},
}


def _check_shapes(program: Program) -> None:
    args, kwargs = program.example_args, dict(program.example_kwargs)
    sizes = [batch_size(args, kwargs)]
    if program.static_batch is None and sizes[0] is not None:
        sizes.append(sizes[0] + 1)
    for size in sizes:
        inputs = (args, kwargs) if size == sizes[0] else resize_batch(args, kwargs, size or 1)
        try:
            values = values_of(program.graph_module, *inputs)
        except Exception as error:
            raise InvalidProgram(f"shapes do not fit at batch size {size}: {error}") from error
        if size != sizes[0]:
            continue
        for node, value in values.items():
            known = node.meta.get("val")
            if isinstance(value, Tensor) and (not isinstance(known, Tensor) or known.shape != value.shape):
                raise InvalidProgram(f'{node.name} computes {list(value.shape)}, its "val" says otherwise: propagate')
