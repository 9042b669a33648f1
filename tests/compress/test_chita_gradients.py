"""The data matrix: its rows, where they are held, and products without it."""

import logging

import pytest
import torch
from tiny_recipe import TinyNet, batches

from secateur.compress.chita.backsolve import backsolve
from secateur.compress.chita.data_matrix import StoredMatrix, choose_storage, collect
from secateur.compress.chita.gradients import Rows
from secateur.compress.chita.matrix_free import MatrixFree
from secateur.compress.chita.problem import Problem
from secateur.compress.chita.variables import find_variables
from secateur.compress.heal.evaluate import cross_entropy
from secateur.compress.sensitivity.batches import read_batches
from secateur.errors import EnvironmentLacksError, UserError
from secateur.passes.capture import capture

CPU = torch.device("cpu")


def rows(samples=40, size=1, loss=cross_entropy, data=None, model=None):
    torch.manual_seed(0)
    net = (model or TinyNet(4)).eval()
    program = capture(net, (torch.randn(2, 3, 8, 8),)).eval()
    given = read_batches(data or batches(64, 1, 16), samples, program, CPU)
    return net, given, Rows(program, given, loss, find_variables(program), size)


def one_by_one(net, given, size):
    found = []
    names = [n for n, p in net.named_parameters() if p.ndim > 1]
    for batch in given:
        for low in range(0, batch.size - size + 1, size):
            net.zero_grad()
            torch.nn.functional.cross_entropy(
                net(batch.args[0][low : low + size]), batch.target[low : low + size]
            ).backward()
            found.append(torch.cat([net.get_parameter(n).grad.flatten() for n in names]))
    return torch.stack(found)


@pytest.mark.parametrize("size", [1, 4])
def test_rows_are_the_gradients_of_mini_batches_in_evaluation_mode(size):
    net, given, made = rows(size=size)
    found = torch.cat(list(made.run()))
    assert not made.one_by_one
    assert torch.allclose(found, one_by_one(net, given, size), atol=1e-5)
    assert found.shape == (made.count, made.variables.size)


def test_losses_that_look_at_their_values_go_one_by_one_and_say_so(caplog):
    def loss(output, target):
        assert float(output.detach().abs().max()) < 1e6
        return torch.nn.functional.cross_entropy(output, target)

    net, given, made = rows(loss=loss)
    with caplog.at_level(logging.WARNING):
        found = torch.cat(list(made.run()))
    assert torch.allclose(found, one_by_one(net, given, 1), atol=1e-5)
    assert made.one_by_one
    assert "one by one" in caplog.text


def test_the_program_keeps_its_weights_and_modes():
    _, _, made = rows()
    module = made.program.module().train() if hasattr(made.program.module(), "train") else made.program.module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    list(made.run())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.training


@pytest.mark.parametrize("storage", ["bfloat16", "disk"])
def test_half_precision_and_the_disk_hold_the_same_numbers(storage, tmp_path):
    _, _, made = rows()
    exact = collect(made, "float32")
    found = collect(made, storage, folder=tmp_path)
    assert found.values.dtype == torch.bfloat16
    assert (len(list(tmp_path.iterdir())) == 1) == (storage == "disk")
    rounded = exact.values.bfloat16().float()
    v, u = torch.randn(exact.size), torch.randn(exact.rows)
    assert torch.allclose(found.forward(v), rounded @ v, atol=1e-4)
    assert torch.allclose(found.adjoint(u), u @ rounded, atol=1e-4)
    assert torch.allclose(found.gram(), (rounded @ rounded.T).double(), atol=1e-4)
    index = torch.tensor([5, 3, 500])
    assert torch.equal(found.columns(index), rounded[:, index])
    assert torch.allclose(found.square_sums(), rounded.square().sum(0), atol=1e-5)
    del found
    assert not list(tmp_path.iterdir())


def test_memory_decides_where_the_gradients_are_held():
    size = 10**6
    assert choose_storage(1000, size, CPU, memory=5 * 10**9)[0] == "float32"
    assert choose_storage(1000, size, CPU, memory=3 * 10**9)[0] == "bfloat16"
    storage, why = choose_storage(1000, size, CPU, memory=10**9)
    assert storage == "disk"
    assert "4 GB" in why and "1 GB" in why
    assert choose_storage(1000, size, torch.device("cuda"), memory=10**9)[0] == "matrix-free"


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    _, _, made = rows()
    with pytest.raises(EnvironmentLacksError, match="disk is too small"):
        collect(made, "disk", folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 4])
def test_products_without_a_matrix_are_those_with_it(size):
    _, _, made = rows(size=size)
    held, free = collect(made, "float32"), MatrixFree(made)
    assert (free.rows, free.size) == (held.rows, held.size)
    v, u = torch.randn(held.size), torch.randn(held.rows)
    assert torch.allclose(free.forward(v), held.forward(v), atol=1e-3)
    assert torch.allclose(free.adjoint(u), held.adjoint(u), atol=1e-3)


def test_backsolve_without_a_matrix_gives_the_same_weights():
    _, _, made = rows()
    held = collect(made, "float32")
    center = made.variables.read(made.program)
    support = center.abs() > center.abs().median()
    expected = backsolve(Problem(held, center, 1e-2), support)
    found = backsolve(Problem(MatrixFree(made), center, 1e-2), support)
    assert torch.allclose(found.w, expected.w, atol=1e-3)
    assert found.value == pytest.approx(expected.value, rel=1e-3)


def test_a_gradient_that_is_not_finite_is_placed():
    data = batches(64, 1, 16)
    data[1][0][3] = float("nan")
    _, _, made = rows(data=data)
    with pytest.raises(UserError, match=r"gradient is NaN or infinite") as caught:
        list(made.run())
    assert "row 19" in str(caught.value)
    assert "conv1.weight" in str(caught.value)


def test_labels_out_of_range_are_named():
    data = [(x, y + 7) for x, y in batches(64, 1, 16)]
    _, _, made = rows(data=data)
    with pytest.raises(UserError, match=r"labels are out of range"):
        list(made.run())


def test_batches_smaller_than_a_row_are_refused():
    with pytest.raises(UserError, match="no complete mini-batch"):
        rows(size=17)


def test_a_restricted_matrix_is_that_of_its_columns():
    matrix = StoredMatrix(torch.randn(5, 9))
    index = torch.tensor([1, 4, 8])
    assert torch.equal(matrix.restrict(index).values, matrix.values[:, index])
