"""Capture: from a PyTorch model to a program."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from ..errors import UnsupportedError, UserError
from .dynamic_axes import Axes, check_axes, dynamic_shapes, names_in_call, other_lengths
from .evaluation_only import evaluation_only
from .functionalise import free_views, functionalise
from .program import Program
from .quiet import quiet
from .regions import lay_open
from .remodulise import remodulise
from .shapes import batch_size, propagate, resize_batch, values_of
from .userline import of_error

_RESULT_TOLERANCE = 1e-4


def capture(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic: Mapping[str, Sequence[int]] | None = None,
) -> Program:
    """Captures a model as a program: its graph as layers and ATen calls, with copies of its weights.

    The model itself is left untouched. The program is in eval mode and takes the arguments of the model. The batch
    (axis 0 of the inputs) is dynamic unless the model fixes it; `Program.static_batch` then says why.

    Args:
        model: The network.
        example_inputs: A tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
        example_kwargs: Further keyword arguments.
        dynamic: Further axes that may change their length between calls, by argument of forward: a sequence length is
            `{"input_ids": [1], "attention_mask": [1]}`. Every other axis has the length of the examples for good.

    Returns:
        The program; `notes` says what the model does in training only. Outputs keep their nesting; mappings and
        dataclasses become plain dicts, named tuples plain tuples.

    Raises:
        UserError: A weight is not finite, the model does not run on the example inputs, or has no such axis.
        UnsupportedError: The model depends on its data in a way that no graph can hold, fixes a length that should be
            dynamic, or uses an unknown operation.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            "this is not a torch model",
            where=type(model).__name__,
            why="no nn.Module",
            hint="pass the nn.Module itself",
        )
    args, kwargs = _split(example_inputs, example_kwargs)
    if batch_size(args, kwargs) == 0:
        raise UserError("the example batch is empty", where="example_inputs", hint="pass at least one example")
    _check_weights(model)
    source = _prepare(model)
    expected = _run_model(source, args, kwargs)
    names = names_in_call(source.forward, args, kwargs)
    axes = check_axes(dynamic, names, args, kwargs)
    graph_module, static_batch = _capture_graph(source, _Examples(names, args, kwargs), axes)
    propagate(graph_module, args, kwargs)
    notes = evaluation_only(source, *resize_batch(args, kwargs, max(batch_size(args, kwargs) or 2, 2)))
    program = Program(graph_module, args, kwargs, static_batch, ("capture",), axes, notes)
    _check_result(program, source, args, kwargs, expected)
    if axes:
        args, kwargs = other_lengths(names, args, kwargs, axes)
        _check_result(program, source, args, kwargs, _run_model(source, args, kwargs))
    return program


class _Examples(NamedTuple):
    """A call of the model."""

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def with_batch(self, size: int) -> _Examples:
        return _Examples(self.names, *resize_batch(self.args, self.kwargs, size))


def plain(value: Any) -> Any:
    """A value in builtin containers only: mappings and dataclasses as dicts, named tuples as tuples."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: plain(item) for name, item in fields.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def _split(inputs: Any, extra: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments by the convention of every batch."""
    if isinstance(inputs, Mapping):
        return (), {**inputs, **(extra or {})}
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return args, dict(extra or {})


def _check_weights(model: nn.Module) -> None:
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if ".running_" in f".{n}")]
    for name, tensor in named:
        if is_lazy(tensor):
            raise UserError(
                "a weight has no shape yet",
                where=name,
                why="it belongs to a lazy module that has not seen an input",
                hint="run the model once before it is captured",
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise UserError(
                "a weight is not finite",
                where=name,
                why=f"{bad} of {tensor.numel()} values are NaN or infinite",
                hint="load a checkpoint whose training did not diverge",
            )


def _prepare(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose outputs are builtin containers."""
    try:
        source = copy.deepcopy(model).eval()
    except Exception as error:
        raise UnsupportedError(
            "the model cannot be copied",
            where=type(model).__name__,
            why=_first_line(error),
            hint="keep tensors that carry gradients out of attributes, or make them parameters or buffers",
        ) from error
    forward = source.forward

    @functools.wraps(forward)
    def plain_forward(*args: Any, **kwargs: Any) -> Any:
        return plain(forward(*args, **kwargs))

    source.forward = plain_forward  # type: ignore[method-assign]
    return source


def _run(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The output on copies of the examples; buffers are put back to what they were."""
    state = {name: buffer.clone() for name, buffer in network.named_buffers()}
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, dict(kwargs)))
    try:
        with torch.no_grad():
            return network(*args, **kwargs)
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(state[name])


def _run_model(source: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    try:
        return _run(source, args, kwargs)
    except Exception as error:
        raise UserError(
            "the model does not run on the example inputs",
            where=type(source).__name__,
            why=f"{type(error).__name__}: {_first_line(error)}",
            hint=_types_hint(source, (args, dict(kwargs)), error)
            or "pass a tensor, a tuple of positional arguments or a dict of keyword arguments that model(…) accepts",
        ) from error


def _types_hint(source: nn.Module, inputs: Any, error: Exception) -> str:
    """What to change if weights and inputs are of different types; nothing if that is not it."""
    weights = {str(p.dtype) for p in source.parameters() if p.is_floating_point()}
    about_types = re.search(r"scalar type|dtype|\w+Tensor\) and weight", str(error)) is not None
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    given = {str(x.dtype) for x in tensors if x.is_floating_point() or about_types}
    if not weights or not given or weights == given:
        return ""
    types = f"the weights are {', '.join(sorted(weights))}, the inputs {', '.join(sorted(given))}"
    return f"{types}: compile in float32, with model.float() in its factory and inputs.float() in that of the data"


def _capture_graph(source: nn.Module, given: _Examples, axes: Axes) -> tuple[fx.GraphModule, str | None]:
    """The rebuilt graph, with the reason why its batch is fixed if it is."""
    batch = batch_size(given.args, given.kwargs)
    reason = "no input tensor has a batch axis"
    if batch is not None:
        # Sizes 0 and 1 are taken for constants by torch.export.
        size = max(batch, 2)
        wide = given.with_batch(size)
        exported, error = _export(source, wide, axes, batch=size)
        if exported is None:
            reason = _condense(error)
        else:
            graph_module = _rebuild(exported, source, wide.args, wide.kwargs)
            failure = _fails_at(graph_module, given.with_batch(size + 1))
            if failure is None:
                return _checked_lengths(graph_module, source, given, axes), None
            reason = f"the graph does not run at batch size {size + 1}: {failure}"
    exported, error = _export(source, given, axes)
    if exported is None and axes and _export(source, given, {})[0] is not None:
        raise _fixed_length(source, axes, _condense(error)) from error
    if exported is None:
        raise _refusal(source, error) from error
    return _checked_lengths(_rebuild(exported, source, given.args, given.kwargs), source, given, axes), reason


def _checked_lengths(graph_module: fx.GraphModule, source: nn.Module, given: _Examples, axes: Axes) -> fx.GraphModule:
    """The graph, if it runs at other lengths of the dynamic axes."""
    failure = _fails_at(graph_module, _Examples(given.names, *other_lengths(*given, axes))) if axes else None
    if failure is not None:
        raise _fixed_length(source, axes, f"the graph does not run at another length: {failure}")
    return graph_module


def _export(
    source: nn.Module, given: _Examples, axes: Axes, *, batch: int | None = None
) -> tuple[fx.GraphModule | None, Exception | None]:
    """The exported graph, or why there is none; `batch` is the size that becomes dynamic, None if it is fixed."""
    # torch.export marks the tensors that it is given, and would find the marks again.
    given = _Examples(given.names, *pytree.tree_map_only(Tensor, torch.clone, (given.args, given.kwargs)))
    shapes = None
    if batch or axes:
        told = dynamic_shapes(*given, axes, batch)
        bound = dict(inspect.signature(source.forward).bind(*given.args, **given.kwargs).arguments)
        shapes = pytree.tree_map(lambda leaf: told.get(id(leaf)), bound)
    try:
        with quiet():
            exported = torch.export.export(source, given.args, given.kwargs, dynamic_shapes=shapes, strict=False)
        return exported.module(), None
    except Exception as error:
        return None, error


def _rebuild(
    exported: fx.GraphModule, source: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> fx.GraphModule:
    """The graph of layers for an exported graph."""
    for node in list(exported.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            exported.graph.erase_node(node)
    lay_open(exported)
    free_views(exported.graph)
    try:
        values = values_of(exported, args, kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException) as error:
        raise _refusal(source, error) from error
    functionalise(exported, values)
    free_views(exported.graph)
    return remodulise(exported, source, values_of(exported, args, kwargs))


def _fails_at(graph_module: fx.GraphModule, inputs: _Examples) -> str | None:
    """Why the graph does not run on inputs of these sizes; None if it does."""
    try:
        values_of(graph_module, inputs.args, inputs.kwargs)
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _condense(error: BaseException | None) -> str:
    """What torch.export complains about, in one line without its advice on its own flags."""
    text = str(error)
    fixed = re.search(r"(?:\['(\w+)'\]\S*?size\(\)\[(\d+)\] .*?)?specialized it to be a constant \((\d+)\)", text)
    if fixed:
        axis = f"the length of axis {fixed[2]} of {fixed[1]}" if fixed[2] not in (None, "0") else "the batch size"
        return f"the model fixes {axis} to {fixed[3]}"
    lines = [line.strip(" -\t") for line in text.splitlines() if line.strip(" -\t")]
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return f"a number or a size depends on the values of a tensor ({lines[0]})"
    for pattern in (r"data-dependent", r"not supported|unsupported"):
        for line in lines:
            if re.search(pattern, line, re.IGNORECASE):
                return line
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _refusal(source: nn.Module, error: Exception | None) -> UnsupportedError:
    line = of_error(error) if error else ""
    return UnsupportedError(
        "the model cannot be captured as a graph",
        where=", ".join(part for part in (type(source).__name__, line) if part),
        why=_condense(error),
        hint="take what depends on the values of tensors (branches, loops, .item()) or leaves torch out of forward",
    )


def _fixed_length(source: nn.Module, axes: Axes, why: str) -> UnsupportedError:
    asked = ", ".join(f"{name} axis {axis}" for name, mine in axes.items() for axis in mine)
    steps = [f"{name} ({type(m).__name__})" for name, m in source.named_modules() if isinstance(m, nn.RNNBase)]
    if steps:  # their loop over time is unrolled
        why += f"; recurrent layers take one length: {', '.join(steps)}"
    return UnsupportedError(
        "a length that should be dynamic is fixed by the model",
        where=f"{type(source).__name__}: {asked}",
        why=why,
        hint="name all inputs that share the length; or leave it out of `dynamic` and pad inputs to one length",
    )


def _check_result(
    program: Program, source: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], expected: Any
) -> None:
    """The program must compute what the model computes (unless the model itself never computes the same twice)."""
    got = _run(program.graph_module, args, kwargs)
    if _close(expected, got):
        return
    again = _run_model(source, args, kwargs)
    if not _close(expected, again):
        return
    raise UnsupportedError(
        "the captured graph does not compute what the model computes",
        where=type(source).__name__,
        why="part of forward escapes torch.export: it writes through views, keeps state or leaves torch",
        hint="compare module by module, and take that part out of forward",
    )


def _close(expected: Any, got: Any) -> bool:
    left, left_spec = pytree.tree_flatten(expected)
    right, right_spec = pytree.tree_flatten(got)
    if left_spec != right_spec:
        return False
    for a, b in zip(left, right, strict=True):
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            return False
        if isinstance(a, Tensor):
            if a.shape != b.shape or not torch.allclose(a, b, _RESULT_TOLERANCE, _RESULT_TOLERANCE, equal_nan=True):
                return False
        elif a != b:
            return False
    return True
