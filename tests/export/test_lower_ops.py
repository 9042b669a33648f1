"""Every operation that has a lowering, in onnxruntime against torch, at two batch sizes."""

import functools
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from secateur.errors import ExitCode, UnsupportedError
from secateur.export import lower_ops_conv, lower_ops_masks, lower_ops_math, lower_ops_pool, lower_ops_shape
from secateur.export.lower import OPS, lower_program
from secateur.export.lower_context import function_name
from secateur.export.ort_session import open_session
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.passes.shapes import propagate

A = torch.ops.aten
IMAGE, ROWS, TOKENS, VOLUME = (2, 4, 8, 8), (2, 6), (2, 5, 6), (2, 3, 4, 4, 4)


def tensor(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask(x):
    return x > 0


CASES = {
    # pointwise
    **{f.__name__: (f, TOKENS) for f in (torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.neg, torch.abs)},
    **{f.__name__: (f, TOKENS) for f in (torch.floor, torch.ceil, torch.round, torch.sin, torch.cos, torch.sign)},
    "erf": (torch.erf, TOKENS),
    "log": (lambda x: x.abs().add(1).log(), TOKENS),
    "sqrt": (lambda x: x.abs().sqrt(), TOKENS),
    "rsqrt": (lambda x: x.abs().add(1).rsqrt(), TOKENS),
    "reciprocal": (lambda x: x.abs().add(1).reciprocal(), TOKENS),
    "pow": (lambda x: x.pow(2) + x.abs().add(0.1).pow(1.5), TOKENS),
    "silu": (F.silu, TOKENS),
    "mish": (F.mish, TOKENS),
    "hardswish": (lambda x: F.hardswish(3 * x), TOKENS),
    "hardsigmoid": (lambda x: F.hardsigmoid(3 * x), TOKENS),
    "gelu": (lambda x: F.gelu(x) + F.gelu(x, approximate="tanh"), TOKENS),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), TOKENS),
    "elu": (F.elu, TOKENS),
    "softplus": (F.softplus, TOKENS),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.7), TOKENS),
    "relu6": (lambda x: F.relu6(8 * x), TOKENS),
    "clamp": (lambda x: x.clamp(min=-0.3) + x.clamp(-0.5, 0.5) + x.clamp(max=0.1), TOKENS),
    "column_times_row": (lambda x: x * (torch.arange(5)[:, None] * 10.0 ** -torch.arange(6)), TOKENS),
    "add": (lambda x: torch.add(x, x[:, :1], alpha=2) + 3, TOKENS),
    "sub": (lambda x: torch.sub(x, 1.5, alpha=2) - x[:, :1], TOKENS),
    "rsub": (lambda x: torch.rsub(x, 1.0, alpha=2), TOKENS),
    "mul": (lambda x: x * 2 * x, TOKENS),
    "div": (lambda x: x / 3 + torch.div(x, 0.3, rounding_mode="floor"), TOKENS),
    "div_trunc": (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), TOKENS),
    "maximum": (lambda x: torch.maximum(x, -x), TOKENS),
    "minimum": (lambda x: torch.minimum(x, -x), TOKENS),
    "where": (lambda x: torch.where(x > 0.1, x, 2.0), TOKENS),
    "masked_fill": (lambda x: x.masked_fill(x < 0, -5.0), TOKENS),
    "logical_not": (lambda x: (~(x > 0)).float() + torch.logical_not(x >= 0).float(), TOKENS),
    "bitwise_not": (lambda x: torch.bitwise_not(x > 0).float(), TOKENS),
    "eq": (lambda x: (x == x.round()).float(), TOKENS),
    "ne": (lambda x: (x != x.round()).float(), TOKENS),
    "gt": (lambda x: (x > x[:, :1]).float(), TOKENS),
    "ge": (lambda x: (x >= 0.5).float(), TOKENS),
    "lt": (lambda x: (x < 0).float(), TOKENS),
    "le": (lambda x: (x <= -1).float(), TOKENS),
    # reductions and products
    "mean": (lambda x: x.mean((2, 3)) + x.mean((-1, -2), keepdim=True).squeeze(), IMAGE),
    "mean_axis": (lambda x: x.mean(1) + x.mean(-1), (2, 5, 5)),
    "sum": (lambda x: x.sum(1) + x.sum((1, 2), keepdim=True)[:, 0], TOKENS),
    "amax": (lambda x: x.amax(-1) - x.amin((1,)).sum(-1, keepdim=True), TOKENS),
    "amin": (lambda x: x.amin(1, keepdim=True), TOKENS),
    "argmax": (lambda x: x.argmax(1).float() - x.argmin(1, keepdim=True)[:, 0].float(), TOKENS),
    "argmin": (lambda x: x.argmin(-1), TOKENS),
    "max": (lambda x: x.max(1).values + x.max(1).indices + torch.max(x, -x)[:, 0], TOKENS),
    "min": (lambda x: x.min(-1).values, TOKENS),
    "softmax": (lambda x: x.softmax(-1) + F.softmax(x, 1), TOKENS),
    "log_softmax": (lambda x: F.log_softmax(x, -1), TOKENS),
    "matmul": (lambda x: x @ x.mT, TOKENS),
    "mm": (lambda x: torch.mm(x, torch.ones(6, 3)), ROWS),
    "bmm": (lambda x: torch.bmm(x, x.transpose(1, 2)), TOKENS),
    "addmm": (lambda x: torch.addmm(torch.ones(3), x, torch.ones(6, 3), alpha=2, beta=0.5), ROWS),
    "scaled_dot_product_attention": (lambda x: F.scaled_dot_product_attention(x, x, x), (2, 2, 5, 4)),
    "attention_masked": (lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.eye(5) > 0), (2, 2, 5, 4)),
    "attention_added": (lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(5), scale=0.3), (2, 2, 5, 4)),
    "attention_causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), (2, 2, 5, 4)),
    # shapes
    "view": (lambda x: x.view(x.size(0), -1) + x.view(x.shape[0], 30), TOKENS),
    "view_merge": (lambda x: x.view(-1, 6).reshape(x.shape[0], 5, 2, 3), TOKENS),
    "reshape": (lambda x: x.transpose(1, 2).reshape(x.shape[0], 3, 10), TOKENS),
    "reshape_batch_arithmetic": (lambda x: x.reshape(x.shape[0] * 5, 6).reshape(x.shape[0], 5, 6), TOKENS),
    "reshape_halves": (lambda x: x.reshape(x.shape[0] * 30 // 2 // 15, 2, 15), TOKENS),
    "flatten": (lambda x: x.flatten(1) @ torch.ones(256, 2), IMAGE),
    "flatten_inner": (lambda x: x.flatten(2), IMAGE),
    "flatten_batch": (lambda x: x.flatten(0, 1), TOKENS),
    "unflatten": (lambda x: x.unflatten(1, (2, 2)), IMAGE),
    "permute": (lambda x: x.permute(0, 2, -1, 1), IMAGE),
    "transpose": (lambda x: x.transpose(1, -1), TOKENS),
    "t": (lambda x: (x @ torch.ones(6, 2)).sum(0) + torch.ones(2, 2).t(), ROWS),
    "unsqueeze": (lambda x: x.unsqueeze(1) + x.unsqueeze(-1), (2, 5)),
    "squeeze": (lambda x: x.squeeze(2).squeeze() + x.squeeze((2, 3)), (2, 5, 1, 1)),
    "expand": (lambda x: x[:, None].expand(-1, 4, -1, -1), TOKENS),
    "expand_token": (lambda x: torch.cat([torch.ones(1, 1, 6).expand(x.shape[0], -1, -1), x], 1), TOKENS),
    "bitwise": (lambda x: ((((x > 0) & (x < 1)) | (x > 2)) ^ (x < -1)).float(), TOKENS),
    "bitwise_functions": (
        lambda x: torch.bitwise_xor(torch.bitwise_or(torch.bitwise_and(x > 0, x < 1), x > 2), x < -1).float(),
        TOKENS,
    ),
    "logical_or": (lambda x: torch.logical_or(x > 1, x < 0).float(), TOKENS),
    "clamp_max": (lambda x: torch.clamp_max(x, 0.5), TOKENS),
    "norm": (lambda x: torch.ops.aten.norm.ScalarOpt_dim(x, 2.0, [-1], True), TOKENS),
    "expand_as": (lambda x: x[:, :1].expand_as(x) * x, TOKENS),
    "repeat": (lambda x: x.repeat(1, 2, 3) + x.repeat(1, 1, 2, 3)[0], TOKENS),
    "slice": (lambda x: x[:, 1:-1, ::2] + x[:, :3, -3:], TOKENS),
    "slice_symbolic": (lambda x: torch.arange(100.0)[: x.shape[0], None, None] * x, TOKENS),
    "select": (lambda x: x[:, 0] + x[:, -1] + x[:, :, 2].sum(1, keepdim=True), TOKENS),
    "split": (lambda x: torch.cat(x.split(2, 1)[::-1], 1), TOKENS),
    "split_with_sizes": (lambda x: x.split([1, 4], 1)[1] * x.split([1, 4], 1)[0], TOKENS),
    "chunk": (lambda x: x.chunk(3, -1)[0] * x.chunk(3, -1)[2], TOKENS),
    "unbind": (lambda x: x.unbind(1)[1] - x.unbind(1)[4], TOKENS),
    "cat": (lambda x: torch.cat([x, x * 2, (x > 0)], -1), TOKENS),
    "stack": (lambda x: torch.stack([x, x * 2], 1) + torch.stack([x, x], -1).sum((2, 3))[:, None, :, None], TOKENS),
    "constant_pad_nd": (lambda x: F.pad(x, (1, 2, 0, 0, 3, 1)), IMAGE),
    "pad": (lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect") + F.pad(x, (1, 2, 2, 1), mode="replicate"), IMAGE),
    "pad_value": (lambda x: F.pad(x, (1, -1), value=2.5), TOKENS),
    "index_select": (lambda x: x.index_select(1, torch.tensor([3, 0])), TOKENS),
    "gather": (lambda x: x.gather(1, torch.zeros(1, 2, 6, dtype=torch.long).expand(x.shape[0], -1, -1)), TOKENS),
    "index": (lambda x: x[:, torch.tensor([3, 0, 3])], TOKENS),
    "index_pairs": (lambda x: x[:, torch.tensor([3, 0, 3]), torch.tensor([1, -1, 2])], TOKENS),
    "index_grid": (lambda x: x[:, torch.tensor([[3], [0]]), torch.tensor([1, 5, 2])], (2, 5, 6, 3)),
    "index_apart": (lambda x: x[:, torch.tensor([3, 0]), :, torch.tensor([1, 2])], (2, 5, 6, 3)),
    "index_batch": (lambda x: x[torch.arange(x.shape[0])[:, None], torch.tensor([[2, 0, 1]])], TOKENS),
    # masks and positions
    "and": (lambda x: ((x > 0) & (x < 1)).float() + ((x > 0) | (x < -1)).float() + ((x > 0) ^ (x < 1)).float(), TOKENS),
    "and_integers": (lambda x: ((x * 9).long() & 6).float() + ((x * 9).long() | 1).float(), TOKENS),
    "logical_and": (lambda x: torch.logical_and(x.relu(), x < 1).float() + torch.logical_xor(x > 0, x.relu()), TOKENS),
    "tril": (lambda x: x.tril(-1) + x.triu(1) + (x > 0).tril().float(), TOKENS),
    "cumsum": (lambda x: x.cumsum(1) + (x > 0).cumsum(-1), TOKENS),
    "roll": (lambda x: x.roll((2, -1), (1, 2)) + x.roll(7, 1), TOKENS),
    "flip": (lambda x: x.flip(1, -1), TOKENS),
    "vector_norm": (lambda x: F.normalize(x, dim=-1) + x.norm(p=1, dim=1, keepdim=True), TOKENS),
    "vector_norm_all": (lambda x: torch.linalg.vector_norm(x, dim=(1, 2)), TOKENS),
    "baddbmm": (lambda x: torch.baddbmm(x, x, torch.ones(6, 6).expand(x.shape[0], 6, 6), beta=0.5, alpha=2), TOKENS),
    "glu": (F.glu, TOKENS),
    "rms_norm": (lambda x: F.rms_norm(x, (6,), torch.arange(6) * 0.2) + F.rms_norm(x, (5, 6), eps=0.1), TOKENS),
    "square": (torch.square, TOKENS),
    "full_scalar": (lambda x: x + x.new_full((), 2.0) + torch.ones_like(x[0, 0, 0]), TOKENS),
    "attention_grouped": (
        lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True), (2, 4, 5, 6)
    ),
    "full": (lambda x: x + torch.full((6,), 2.0) + torch.zeros(6) + torch.full((x.shape[0], 1, 1), 0.5), TOKENS),
    "zeros": (lambda x: x + torch.zeros(x.shape[0], 1, 6), TOKENS),
    "ones": (lambda x: x + torch.ones(x.shape[0], 5, 1), TOKENS),
    "full_like": (lambda x: x + torch.full_like(x, 3) + torch.zeros_like(x) + torch.ones_like(x), TOKENS),
    "new_zeros": (lambda x: x + x.new_zeros(6) + x.new_ones(x.shape[0], 1, 1) + x.new_full((6,), 2), TOKENS),
    "arange": (lambda x: x + torch.arange(6) + torch.arange(x.shape[0])[:, None, None], TOKENS),
    "clone": (lambda x: x.clone().contiguous().detach() + x.double().to(torch.float32), TOKENS),
    "type_as": (lambda x: (x * 3).long().type_as(x) + x.to(torch.int32), TOKENS),
    # pooling and resampling
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1) + F.max_pool2d(x, 2), IMAGE),
    "max_pool_ceil": (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), IMAGE),
    "max_pool_dilated": (lambda x: F.max_pool2d(x, 2, 2, dilation=2), IMAGE),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2, 1), TOKENS),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), VOLUME),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2, 1), TOKENS),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), IMAGE),
    "avg_pool_whole": (lambda x: F.avg_pool2d(x, x.size(3)), IMAGE),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), VOLUME),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 1), TOKENS),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 4) + F.adaptive_avg_pool2d(x, (1, 1)), IMAGE),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 1), VOLUME),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 4) + F.adaptive_max_pool2d(x, 1), IMAGE),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 1), TOKENS),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, 2), VOLUME),
    "upsample_nearest1d": (lambda x: F.interpolate(x, scale_factor=2), TOKENS),
    "upsample_nearest2d": (lambda x: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=(16, 16)), IMAGE),
    "upsample_nearest3d": (lambda x: F.interpolate(x, scale_factor=2), VOLUME),
    "upsample_linear1d": (lambda x: F.interpolate(x, scale_factor=2, mode="linear"), TOKENS),
    "upsample_bilinear2d": (
        lambda x: F.interpolate(x, size=(13, 11), mode="bilinear")
        + F.interpolate(x, size=(13, 11), mode="bilinear", align_corners=True),
        IMAGE,
    ),
    "upsample_trilinear3d": (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), VOLUME),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), IMAGE),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), IMAGE),
    # layers called as functions, on weights that are computed
    "conv1d": (lambda x: F.conv1d(x, torch.ones(2, 5, 3).tanh(), padding=1), (2, 5, 6)),
    "conv2d": (lambda x: F.conv2d(x, torch.ones(6, 2, 3, 3).tanh(), stride=2, padding="valid", groups=2), IMAGE),
    "conv3d": (lambda x: F.conv3d(x, torch.ones(2, 3, 2, 2, 2).tanh(), torch.ones(2)), VOLUME),
    "conv_transpose1d": (lambda x: F.conv_transpose1d(x, torch.ones(5, 2, 3).tanh(), stride=2), TOKENS),
    "conv_transpose2d": (lambda x: F.conv_transpose2d(x, torch.ones(4, 2, 3, 3).tanh(), stride=2, padding=1), IMAGE),
    "conv_transpose3d": (lambda x: F.conv_transpose3d(x, torch.ones(3, 2, 2, 2, 2).tanh()), VOLUME),
    "linear": (lambda x: F.linear(x, torch.ones(3, 6).tanh(), torch.ones(3)), TOKENS),
    "linear_plain": (lambda x: F.linear(x, torch.ones(3, 6).tanh()), TOKENS),
    "linear_rows": (lambda x: F.linear(x, torch.ones(3, 6).tanh(), torch.ones(3)), ROWS),
    "layer_norm": (lambda x: F.layer_norm(x, (5, 6)) + F.layer_norm(x, (6,), torch.ones(6) * 2, torch.ones(6)), TOKENS),
    "group_norm": (lambda x: F.group_norm(x, 2, torch.ones(4) * 2, torch.ones(4)) + F.group_norm(x, 4), IMAGE),
    "instance_norm": (F.instance_norm, IMAGE),
    "embedding": (lambda x: F.embedding(x.abs().long().clamp(max=3), torch.eye(4).tanh()), TOKENS),
    "batch_norm": (
        lambda x: F.batch_norm(x, torch.ones(4) * 0.3, torch.ones(4) * 2, torch.ones(4).tanh(), torch.ones(4)),
        IMAGE,
    ),
    "prelu": (lambda x: F.prelu(x, torch.arange(4) * 0.1), IMAGE),
    "dropout": (lambda x: F.dropout(x, 0.5, training=False), TOKENS),
}  # fmt: skip

LAYERS = {
    "conv1d": (nn.Conv1d(5, 3, 3, padding=1, dilation=2), TOKENS),
    "conv2d_same": (nn.Conv2d(4, 3, 4, padding="same", dilation=(1, 2)), IMAGE),
    "conv2d_grouped": (nn.Conv2d(4, 8, 3, stride=(2, 1), padding=(0, 1), groups=4, bias=False), IMAGE),
    **{
        f"conv2d_{m}": (nn.Conv2d(4, 3, 3, padding=1, padding_mode=m), IMAGE)
        for m in ("reflect", "replicate", "circular")
    },
    "conv3d": (nn.Conv3d(3, 2, 3, padding=1), VOLUME),
    "transpose1d": (nn.ConvTranspose1d(5, 3, 3, stride=2, output_padding=1), TOKENS),
    "transpose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2), IMAGE),
    "linear": (nn.Linear(6, 3, bias=False), ROWS),
    "linear_tokens": (nn.Linear(6, 3), TOKENS),
    "batch_norm_plain": (nn.BatchNorm2d(4, affine=False, eps=1e-3), IMAGE),
    "batch_norm_of_batch": (nn.BatchNorm1d(6, track_running_stats=False), ROWS),
    "layer_norm": (nn.LayerNorm(6, elementwise_affine=False), TOKENS),
    "layer_norm_bias": (nn.LayerNorm((5, 6), bias=False), TOKENS),
    "group_norm": (nn.GroupNorm(2, 4), IMAGE),
    "group_norm_plain": (nn.GroupNorm(2, 4, affine=False), IMAGE),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), IMAGE),
    "dropout": (nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.Identity()), IMAGE),
}


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@functools.cache
def captured(case):
    function, shape = CASES[case]
    return capture(Function(function), (tensor(shape),))


def compare(program, call, shape, *, tolerance=1e-5):
    """Runs a program's ONNX form at two batch sizes against `call`; returns what was lowered."""
    lowered = lower_program(program, ORT_CPU)
    session = open_session(lowered.model)
    name = session.get_inputs()[0].name
    for batch in (2, 5):
        x = tensor((batch, *shape[1:]), seed=batch)
        with torch.no_grad():
            expected = call(x).numpy()
        (got,) = session.run(None, {name: x.numpy()})
        assert got.dtype == expected.dtype and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    return lowered


@pytest.mark.parametrize("case", CASES)
def test_operation_computes_what_torch_computes(case):
    function, shape = CASES[case]
    assert not compare(captured(case), function, shape).fallbacks


@pytest.mark.parametrize("case", LAYERS)
def test_layer_computes_what_torch_computes(case):
    layer, shape = LAYERS[case]
    lowered = compare(capture(layer.eval(), (tensor(shape),)), layer, shape)
    assert not lowered.fallbacks


def single(target, *args, shape=TOKENS):
    """A program that calls one function on its input."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(target, (x, *args)))
    program = Program(fx.GraphModule(nn.Module(), graph), (tensor(shape),))
    propagate(program)
    return program


DIRECT = {
    "view": (A.view.default, ([-1, 6],), TOKENS),
    "_unsafe_view": (A._unsafe_view.default, ([-1, 6],), TOKENS),
    "constant_pad_nd": (A.constant_pad_nd.default, ([1, 2, 0, 0, 3, 1], 0.5), IMAGE),
    "alias": (A.alias.default, (), TOKENS),
    "lift_fresh": (A.lift_fresh.default, (), TOKENS),
    "lift_fresh_copy": (A.lift_fresh_copy.default, (), TOKENS),
    "_to_copy": (A._to_copy.default, (), TOKENS),
    "truediv": (operator.truediv, (2.0,), TOKENS),
    "swapaxes": (A.swapaxes.default, (1, 2), TOKENS),
    "relu6": (A.relu6.default, (), TOKENS),
    "feature_dropout": (A.feature_dropout.default, (0.5, False), IMAGE),
    "alpha_dropout": (A.alpha_dropout.default, (0.5, False), IMAGE),
    "contiguous": (A.contiguous.default, (), TOKENS),
    "dropout": (A.dropout.default, (0.5, False), TOKENS),
    "instance_norm": (A.instance_norm.default, (None, None, None, None, True, 0.1, 1e-5, False), IMAGE),
}


@pytest.mark.parametrize("case", DIRECT)
def test_operation_that_capture_does_not_emit(case):
    target, args, shape = DIRECT[case]
    assert not compare(single(target, *args, shape=shape), lambda x: target(x, *args), shape).fallbacks


POOLS = {A.max_pool2d_with_indices.default: IMAGE, A.max_pool3d_with_indices.default: VOLUME}


@pytest.mark.parametrize("target", POOLS, ids=str)
def test_values_of_an_operation_with_several_results(target):
    graph = fx.Graph()
    x = graph.placeholder("x")
    pooled = graph.call_function(target, (x, [2]))
    graph.output(graph.call_function(operator.getitem, (pooled, 0)))
    program = Program(fx.GraphModule(nn.Module(), graph), (tensor(POOLS[target]),))
    propagate(program)
    compare(program, lambda x: target(x, [2])[0], POOLS[target])


def test_arithmetic_of_sizes():
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(A.sym_size.int, (x, 0))
    for function, operand in ((operator.mul, 6), (operator.add, 1), (operator.floordiv, 2), (operator.sub, 1)):
        size = graph.call_function(function, (size, operand))
    taken = graph.call_function(A.slice.Tensor, (graph.call_function(A.arange.default, (100,)), 0, None, size))
    graph.output(graph.call_function(A.add.Tensor, (graph.call_function(A.sum.default, (taken,)), x)))
    program = Program(fx.GraphModule(nn.Module(), graph), (tensor(ROWS),))
    propagate(program)
    compare(program, lambda x: x + torch.arange((len(x) * 6 + 1) // 2 - 1).sum(), ROWS)


@pytest.mark.parametrize("function", [operator.and_, operator.or_, operator.xor])
def test_bits_of_sizes(function):
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(function, (graph.call_function(A.sym_size.int, (x, 0)), 6))
    taken = graph.call_function(A.slice.Tensor, (graph.call_function(A.arange.default, (100,)), 0, None, size))
    graph.output(graph.call_function(A.add.Tensor, (graph.call_function(A.sum.default, (taken,)), x)))
    program = Program(fx.GraphModule(nn.Module(), graph), (tensor(ROWS),))
    propagate(program)
    compare(program, lambda x: x + torch.arange(function(len(x), 6)).sum(), ROWS)


def test_every_lowering_is_covered():
    covered = {function_name(target) for target in [target for target, _, _ in DIRECT.values()] + list(POOLS)}
    covered |= {"floordiv", "and_", "or_", "xor"}  # arithmetic and bits of sizes
    for case in CASES:
        program = captured(case)
        covered |= {function_name(node.target) for node in program.graph.nodes if node.op == "call_function"}
    modules = (lower_ops_conv, lower_ops_masks, lower_ops_math, lower_ops_pool, lower_ops_shape)
    assert sum(len(m.OPS) for m in modules) == len(OPS), "two tables define the same operation"
    assert set(OPS) - covered == set()


def test_an_operation_without_lowering_takes_the_exporters_translation_for_itself_alone():
    def function(x):
        return torch.relu(torch.logcumsumexp(x, 1)) + 1

    lowered = compare(capture(Function(function), (tensor(TOKENS),)), function, TOKENS)
    assert [f.operation for f in lowered.fallbacks] == ["aten.logcumsumexp.default"]
    names = {node.op_type: node.name for node in lowered.model.graph.node}
    assert names["CumSum"].startswith("logcumsumexp/") and names["Relu"] == "relu"


def test_a_declined_case_takes_the_exporters_translation():
    def function(x):
        return F.softplus(x, beta=2)

    lowered = compare(capture(Function(function), (tensor(TOKENS),)), function, TOKENS)
    assert "beta" in lowered.fallbacks[0].reason


def test_an_operation_without_any_translation_is_named():
    program = capture(Function(lambda x: torch.linalg.eigvalsh(x @ x.mT)), (tensor(TOKENS),))
    with pytest.raises(UnsupportedError) as error:
        lower_program(program, ORT_CPU)
    assert error.value.code is ExitCode.UNSUPPORTED
    assert "eigvalsh" in error.value.what or "eigh" in error.value.what
    assert "test_lower_ops.py" in error.value.where
