"""Quantisation schemes of runtimes other than the default one, as data."""

from __future__ import annotations

from .grid import Grid, QuantScheme

TENSORRT = QuantScheme(
    weight=Grid(signed=True, symmetric=True, narrow=True),
    per_channel=True,
    activation=Grid(signed=True, symmetric=True),
    unsigned_zero_after_relu=False,
    layer_outputs=False,
    add_inputs="skip",
    quantize_linear=True,
    float_tail=True,
)
"""TensorRT and TensorRT-RTX.

Signed integers with zero point 0 (the parser rejects every other one) cost a bit after a ReLU: codes 0 to 127. An
integer convolution writes floats, so Q stands where the next integer layer reads, and what lies between (bias, ReLU, a
residual addition) is done on the accumulator. Of an addition only the skip edge carries Q/DQ: the other operand is the
accumulator itself.
"""
