"""Checkpoints: whatever does not fit is named; nothing is unpickled unasked."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.checkpoint import load_checkpoint
from secateur.errors import UserError


def net(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


def state(**changes):
    return {k: v.clone() for k, v in net().state_dict().items()} | changes


def refusal(tmp_path, tensors):
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        load_checkpoint(net(), tmp_path / "w.safetensors")
    return str(caught.value)


def test_half_precision_is_cast_and_batches_tracked_may_be_absent(tmp_path):
    saved = {k: v.half() if v.is_floating_point() else v for k, v in state().items() if "tracked" not in k}
    save_file(saved, tmp_path / "w.safetensors")
    model = net()
    with torch.no_grad():
        model[0].weight.zero_()
    load_checkpoint(model, tmp_path / "w.safetensors")
    assert model[0].weight.dtype is torch.float32
    torch.testing.assert_close(model[0].weight, net()[0].weight, atol=1e-3, rtol=1e-3)


def test_missing_and_unknown_keys_are_named_with_a_suggestion(tmp_path):
    tensors = state()
    tensors["3.weights"] = tensors.pop("3.weight")
    message = refusal(tmp_path, tensors)
    assert "missing: 3.weight (did you mean 3.weights?)" in message and "unknown: 3.weights" in message


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path):
    message = refusal(tmp_path, state(**{"3.bias": torch.zeros(10)}))
    assert "3.bias is [10] in the file and [3] in the model" in message


def test_nan_is_named(tmp_path):
    message = refusal(tmp_path, state(**{"3.bias": torch.full((3,), float("nan"))}))
    assert "NaN" in message and "3.bias" in message


def test_a_pickle_is_refused_unless_asked_for(tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in state().items()}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="pickled"):
        load_checkpoint(net(), tmp_path / "w.pth")
    load_checkpoint(net(), tmp_path / "w.pth", allow_pickle=True)


def test_a_pickle_that_runs_code_is_refused_even_when_asked_for(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"x": Evil()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(net(), tmp_path / "w.pt", allow_pickle=True)


def test_a_file_that_only_pretends_to_be_safetensors_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04 pickle, really")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_checkpoint(net(), tmp_path / "w.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint here"):
        load_checkpoint(net(), tmp_path / "w.safetensors")
