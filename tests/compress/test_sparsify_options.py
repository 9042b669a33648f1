"""Options that a method of `sparsify` does not read are refused, and those alone; the weights that come out tell."""

import contextlib

import pytest
import torch
from tiny_recipe import TinyNet, batches

from secateur.compress.methods import METHODS
from secateur.compress.sparsify import sparsify
from secateur.compress.sparsify_options import options_of, unread
from secateur.compress.sparsify_settings import SparsifySettings
from secateur.errors import UserError
from secateur.passes.capture import capture
from secateur.sparsity import sparsify_settings

DATA = batches(96, 1)
FEW = {"samples": 16, "holdout": 16, "refit_samples": 32, "batch_norm": "kept", "ridge": 1e-3, "first_order": 0.0}
OTHERS = {
    "samples": 24,
    "batch_size": 2,
    "ridge": 0.1,
    "holdout": 48,
    "storage": "bfloat16",
    "model": "outputs",
    "first_order": 0.5,
    "solver": "cd",
    "block_size": 50,
    "refit_samples": 64,
    "schedule": "constant",
    "start": 0.4,
}
"""Values that change the weights wherever they are read."""


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return capture(TinyNet(4).eval(), (torch.zeros(2, 3, 8, 8),)).eval()


def weights(program, **options) -> torch.Tensor:
    found = sparsify(program, DATA, settings=SparsifySettings(**{**FEW, "sparsity": 0.6, **options})).program
    return torch.cat([value.flatten() for value in found.module().state_dict().values() if value.ndim > 1])


@pytest.mark.parametrize("method", METHODS)
def test_an_option_without_effect_was_taken_in_silence(program, method):
    options = {"method": method} | ({"stages": 2} if METHODS[method].stages > 1 else {})
    usual = weights(program, **options)
    for name, value in OTHERS.items():
        settings = SparsifySettings(**{**FEW, **options, name: value})
        if unread(settings, [name]):
            with contextlib.suppress(UserError):  # some are refused further down as well
                assert torch.equal(weights(program, **options, **{name: value}), usual), name
            with pytest.raises(UserError, match=f"method {method.replace('+', '.')} does not read {name}"):
                sparsify_settings({**options, name: value})
        else:
            assert not torch.equal(weights(program, **options, **{name: value}), usual), name
            sparsify_settings({**options, name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 64, "ridge": 1e-3}, "method reconstruct does not read samples, ridge\n"),
        ({"samples": 64}, "there is: sparsity, scope, pattern"),
        ({"pattern": "2:4", "sparsity": 0.7}, "pattern=2:4 makes 0.5 of the weights zero"),
        ({"method": "magnitude", "start": 0.3}, "there is one stage"),
        ({"method": "chita++", "model": "outputs", "first_order": 0.1}, "no first-order term"),
        ({"method": "chita", "storage": "float32", "folder": "x"}, "writes no file"),
        ({"method": "chita++", "solver": "cd", "block_size": 50}, "solver=cd has no blocks"),
        ({"refit": "none", "refit_samples": 9}, "refit=layers"),
    ],
)
def test_the_refusal_says_what_to_type(options, message):
    with pytest.raises(UserError) as refused:
        sparsify_settings(options)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "2:4", "sparsity": 0.5},
        {"seed": 3},
        {"method": "magnitude", "refit": "layers", "refit_samples": 64, "stages": 3, "start": 0.1},
        {"method": "chita", "folder": "x"},
    ],
)
def test_what_is_read_is_taken(options):
    sparsify_settings(options)


def test_the_options_of_a_method_are_listed_without_those_of_others():
    assert "samples" not in options_of("reconstruct") and "refit_samples" in options_of("reconstruct")
    assert {"samples", "solver", "model"} <= set(options_of("chita++"))
    assert "solver" not in options_of("woodfisher") and "block_size" in options_of("woodfisher")
