"""Rows that hold the outputs: their gradients, their offset, and what they are an estimate of."""

import functools

import pytest
import torch
from tiny_recipe import TinyNet, batches

from secateur.compress.chita.data_matrix import collect
from secateur.compress.chita.outputs import output_rows
from secateur.compress.chita.variables import find_variables
from secateur.compress.sensitivity.batches import read_batches
from secateur.errors import UnsupportedError
from secateur.passes.capture import capture

CPU = torch.device("cpu")


@functools.cache
def setting():
    torch.manual_seed(0)
    program = capture(TinyNet(4).eval(), (torch.randn(2, 3, 8, 8),)).eval()
    variables = find_variables(program)
    moved = program.clone()
    change = 1e-3 * torch.randn(variables.size)
    variables.write(moved, variables.read(program) + change)
    return program, variables, moved, change, read_batches(batches(64, 1, 16), 32, program, CPU)


def made(size=1, seed=0):
    program, variables, moved, change, given = setting()
    rows, offset = output_rows(moved, program, given, variables, size, seed)
    return program, moved, given, collect(rows, "float32"), offset, change


def test_going_back_to_the_dense_weights_brings_the_outputs_back():
    """A (w_dense - w) + c is zero up to the curvature of the network."""
    _, _, _, matrix, offset, change = made()
    assert offset.abs().max() > 1e-5
    assert (matrix.forward(-change) + offset).norm() < 0.1 * offset.norm()


def test_the_mean_of_the_squares_is_the_distance_of_the_outputs():
    program, moved, given, _, _, _ = made()
    with torch.no_grad():
        distance = torch.cat([(moved.module()(*b.args) - program.module()(*b.args)) for b in given])
    draws = torch.stack([made(seed=seed)[4] for seed in range(40)])
    assert float(draws.square().mean()) == pytest.approx(float(distance.square().mean()), rel=0.2)


def test_rows_of_several_samples_are_their_mean():
    one, two = made(1), made(2)
    assert torch.allclose(one[3].values.view(-1, 2, one[3].size).mean(1), two[3].values, atol=1e-5)
    assert torch.allclose(one[4].view(-1, 2).mean(1), two[4], atol=1e-6)


def test_outputs_that_are_no_tensor_are_refused():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(4, 4)

        def forward(self, x):
            return {"y": self.a(x)}

    program = capture(Net(), (torch.randn(2, 4),)).eval()
    given = read_batches([(torch.randn(8, 4), torch.zeros(8))], 8, program, CPU)
    with pytest.raises(UnsupportedError, match="only the loss can be modelled"):
        output_rows(program, program, given, find_variables(program), 1, 0)
