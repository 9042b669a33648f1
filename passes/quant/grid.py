"""Number grids and the quantisation scheme of a target: data that simulation and export share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """An integer grid.

    Attributes:
        bits: Width of the integers.
        signed: Two's complement or unsigned.
        symmetric: Zero point fixed (0 if signed, the middle if unsigned); otherwise it follows the observed range.
        narrow: Leaves out the lowest code of a signed grid (-127..127), so that it is symmetric about zero.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow: bool = False

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(2 ** (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1


@dataclass(frozen=True)
class QuantScheme:
    """What a target wants quantised, on which grids.

    Attributes:
        weight: Grid of weights.
        per_channel: One weight scale per output channel.
        activation: Grid of activations.
        unsigned_zero_after_relu: Non-negative activations get zero point 0 (the requantisation then absorbs the ReLU).
        layer_outputs: The results of integer convolutions carry Q/DQ (the runtime has no integer kernels that write
            floats).
        add_inputs: Which inputs of a residual add carry Q/DQ: "both", or "skip", only the one that is not fused with
            its convolution.
        quantize_linear: Linear layers run as integer kernels (else they stay float).
        float_tail: What follows the last convolution (global pool, classifier) stays float.
    """

    weight: Grid = Grid(signed=True, symmetric=True, narrow=True)
    per_channel: bool = True
    activation: Grid = Grid(signed=False, symmetric=False)
    unsigned_zero_after_relu: bool = True
    layer_outputs: bool = True
    add_inputs: str = "both"
    quantize_linear: bool = True
    float_tail: bool = True
