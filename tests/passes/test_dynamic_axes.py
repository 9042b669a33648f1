"""Lengths besides the batch that may change between calls."""

import pytest
import torch
from torch import nn

from secateur.errors import UnsupportedError, UserError
from secateur.export.lower import lower
from secateur.export.ort_session import open_session, run
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture
from secateur.passes.mask import mask
from secateur.passes.program import Program
from secateur.passes.prune import apply


class Decoder(nn.Module):
    """One causal block with two heads, positions and a mask."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(32, 16)
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 20)
        self.causal = causal

    def forward(self, ids, mask):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        given = None if self.causal else mask[:, None, None, :]
        x = x + self.out(
            nn.functional.scaled_dot_product_attention(q, k, v, given, is_causal=self.causal).transpose(1, 2).flatten(2)
        )
        return {"logits": self.head(x * mask[..., None])}


def inputs(batch: int, length: int) -> dict:
    generator = torch.Generator().manual_seed(length)
    mask = torch.arange(length)[None] < torch.arange(length, length - batch, -1)[:, None].clamp_min(1)
    return {"ids": torch.randint(0, 20, (batch, length), generator=generator), "mask": mask}


BOTH = {"ids": [1], "mask": [-1]}


@pytest.mark.parametrize("causal", [True, False])
def test_other_lengths_in_torch_and_onnxruntime(causal, tmp_path):
    torch.manual_seed(0)
    model = Decoder(causal).eval()
    program = capture(model, inputs(2, 6), dynamic=BOTH)
    assert program.dynamic == {"ids": (1,), "mask": (1,)} and program.static_batch is None
    program.save(tmp_path / "program", pt2=True)
    loaded = Program.load(tmp_path / "program")
    assert loaded.dynamic == program.dynamic
    file = lower(program, ORT_CPU)
    axes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in file.graph.input]
    assert axes == [["batch", "ids_1"], ["batch", "mask_1"]]
    exported = torch.export.load(tmp_path / "program" / "program.pt2").module()
    session = open_session(file)
    for batch, length in ((2, 6), (1, 2), (3, 11), (5, 31)):
        call = inputs(batch, length)
        with torch.no_grad():
            wanted = model(**call)["logits"]
            for network in (program.module(), loaded.module(), exported):
                torch.testing.assert_close(network(**call)["logits"], wanted)
        got = run(session, {name: tensor.numpy() for name, tensor in call.items()})["logits"]
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5)


def test_a_smaller_network_keeps_its_lengths():
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3))
    program = capture(model, torch.randn(2, 3, 20), dynamic={"input": [2]})
    smaller = apply(program, {"0": [0, 2, 5]})
    assert smaller.dynamic == program.dynamic
    (value,) = lower(smaller, ORT_CPU).graph.output
    assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == ["batch", 4, "output_2"]
    assert smaller.module()(torch.randn(4, 3, 33)).shape == (4, 4, 29)


def test_a_length_that_the_model_fixes_is_refused_by_name():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 6)

        def forward(self, tokens):
            return self.mix(tokens.transpose(1, 2)).transpose(1, 2)

    with pytest.raises(UnsupportedError, match="a length that should be dynamic is fixed") as caught:
        capture(Fixed(), torch.randn(2, 6, 3), dynamic={"tokens": [1]})
    assert caught.value.where == "Fixed: tokens axis 1"
    assert caught.value.why == "the model fixes the length of axis 1 of tokens to 6"
    assert capture(Fixed(), torch.randn(2, 6, 3), dynamic={"tokens": [2]}).dynamic == {"tokens": (2,)}


def test_lengths_that_depend_on_each_other_are_named_together():
    with pytest.raises(UnsupportedError, match="name all inputs that share the length"):
        capture(Decoder(), inputs(2, 6), dynamic={"ids": [1]})


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [({"id": [1]}, "did you mean ids"), ({"ids": [2]}, r"axis 2 of 'ids'"), ({"ids": [-3]}, r"axis -1 of 'ids'")],
)
def test_wrong_names_and_axes(dynamic, said):
    with pytest.raises(UserError, match=said):
        capture(Decoder(), inputs(2, 6), dynamic=dynamic)


def test_the_users_tensors_carry_no_marks():
    call = inputs(2, 6)
    capture(Decoder(), call, dynamic=BOTH)
    assert not any(name.startswith("_dynamo") for tensor in call.values() for name in vars(tensor))


def test_nested_and_variadic_inputs():
    class Sum(nn.Module):
        def forward(self, *parts, more):
            return sum(parts) + more["a"][0]

    x = [torch.randn(2, 5) for _ in range(3)]
    names = {"parts_0": [1], "parts_1": [1], "more": [1]}
    program = capture(Sum(), tuple(x[:2]), example_kwargs={"more": {"a": (x[2],)}}, dynamic=names)
    y = [torch.randn(3, 9) for _ in range(3)]
    torch.testing.assert_close(program.module()(*y[:2], more={"a": (y[2],)}), sum(y))


def test_folding_keeps_lengths_and_notes():
    from dataclasses import replace

    from secateur.passes.fold import fold_batch_norm, remove_dropout

    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Dropout())
    program = replace(capture(model, torch.randn(2, 3, 9), dynamic={"input": [2]}), notes=("a note",))
    folded = remove_dropout(fold_batch_norm(program))
    assert (folded.dynamic, folded.notes) == (program.dynamic, ("a note",)) and len(list(folded.graph.nodes)) == 3


def test_fewer_heads_at_other_lengths():
    torch.manual_seed(0)
    program = capture(Decoder().eval(), inputs(2, 6), dynamic=BOTH)
    keep = {group.name: range(0, group.width, 2) for group in program.groups if group.frozen is None}
    assert keep
    smaller, masked = apply(program, keep), mask(program, keep)
    session = open_session(lower(smaller, ORT_CPU))
    for batch, length in ((3, 4), (2, 13)):
        call = inputs(batch, length)
        with torch.no_grad():
            wanted = masked.module()(**call)["logits"]
            torch.testing.assert_close(smaller.module()(**call)["logits"], wanted)
        got = run(session, {name: tensor.numpy() for name, tensor in call.items()})["logits"]
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5)
