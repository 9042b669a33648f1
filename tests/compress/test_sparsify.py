"""`sparsify` as a whole: methods, patterns, what is refused, and zeros that last until the ONNX file."""

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from tiny_recipe import batches, model

from secateur.compress.chita.nm import holds_pattern
from secateur.compress.data import split_batch
from secateur.compress.heal.evaluate import cross_entropy, evaluate, top1
from secateur.compress.heal.heal import heal
from secateur.compress.heal.settings import HealSettings, TrainSettings
from secateur.compress.quantize import quantize
from secateur.compress.sparsify import SparsifyResult, gradients_of, sparsify
from secateur.compress.sparsify_settings import SparsifySettings
from secateur.errors import UserError
from secateur.export.export import export
from secateur.export.targets import TARGETS
from secateur.passes.capture import capture

DATA = batches(512, 1)
CONVOLUTIONS = ("conv2.weight", "conv3.weight")


@pytest.fixture(scope="module")
def program():
    return capture(model(16), (torch.zeros(2, 3, 8, 8),)).eval()


def run(program, **options) -> SparsifyResult:
    given = {"method": "chita++", "samples": 64, "holdout": 64, "sparsity": 0.6, **options}
    if given["method"] in {"chita++", "m-fac"}:
        given.setdefault("stages", 3)
    return sparsify(program, DATA, settings=SparsifySettings(**given))


def loss_of(program) -> float:
    found = evaluate(program, DATA, top1, cross_entropy).loss
    assert found is not None
    return found


METHODS = ["magnitude", "woodfisher", "cbs", "m-fac", "chita-bso", "chita-cd", "chita", "chita++"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_sparsity_that_was_asked_for(program, method):
    result = run(program, method=method, batch_norm="kept")
    weights = sum(p.numel() for n, p in program.module().named_parameters() if p.ndim > 1)
    assert result.facts["weights"] == weights
    assert result.facts["zeros"] == weights - int(0.4 * weights + 1e-6)
    assert result.program.history[-1] == "sparsify"
    found = dict(result.program.module().named_parameters())
    for name, before in program.module().named_parameters():
        if before.ndim < 2:
            assert torch.equal(before, found[name])


def test_the_program_that_was_given_stays_as_it_is(program):
    before = {name: value.clone() for name, value in program.module().state_dict().items()}
    run(program)
    assert all(torch.equal(before[name], value) for name, value in program.module().state_dict().items())


def test_second_order_updates_beat_magnitude_and_stages_beat_one(program):
    losses = {m: loss_of(run(program, method=m, sparsity=0.8, batch_norm="kept").program) for m in METHODS}
    assert losses["chita-bso"] < losses["magnitude"]
    assert losses["chita++"] < losses["chita-bso"]


def test_the_same_seed_gives_the_same_weights(program):
    first, second = (run(program, method="cbs").program.module().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "layer"},
        {"block": (2, 2)},
        {"macs": 0.4},
        {"pattern": "2:4"},
        {"pattern": "1:4", "method": "chita"},
        {"block_size": 100},
        {"batch_size": 4, "samples": 16},
        {"storage": "bfloat16"},
        {"storage": "matrix-free", "method": "chita-bso", "ridge": 1e-3},
        {"solver": "iht"},
        {"model": "outputs"},
        {"model": "outputs", "method": "chita", "batch_size": 2, "samples": 32},
        {"solver": "step", "first_order": 0.1},
        {"batch_norm": "stages"},
    ],
    ids=str,
)
def test_options_work_and_help_more_than_nothing(program, options):
    result = run(program, **options)
    assert loss_of(result.program) < 1.0
    assert result.facts["zeros"] > 0.3 * result.facts["weights"]


def test_gradients_can_be_shared_by_methods_and_sparsities(program):
    settings = SparsifySettings(samples=64, holdout=64, method="chita-bso", sparsity=0.6)
    shared = gradients_of(program, DATA, settings=settings)
    first = sparsify(program, DATA, settings=settings).program.module().state_dict()
    second = sparsify(program, DATA, settings=settings, gradients=shared).program.module().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(UserError, match="takes gradients anew"):
        sparsify(program, DATA, settings=SparsifySettings(method="chita++"), gradients=shared)
    with pytest.raises(UserError, match="takes no gradients"):
        sparsify(program, DATA, settings=SparsifySettings(), gradients=shared)


def test_storage_and_ridge_are_said(program):
    facts = run(program, method="chita-bso").facts
    assert facts["storage"] == "float32"
    assert facts["gradient_memory"].endswith("MB")
    assert facts["stages"][0]["ridge"] > 0
    assert len(facts["stages"][0]["held_out_losses"]) >= 3


def test_ignored_weights_stay(program):
    result = run(program, ignore=("fc.weight", "conv1.*"))
    after = dict(result.program.module().named_parameters())
    for name, before in program.module().named_parameters():
        if name in {"fc.weight", "conv1.weight"}:
            assert torch.equal(before, after[name])
    assert set(result.dense) == {"fc.weight", "conv1.weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.0}, "between 0 and 1"),
        ({"sparsity": 1.0}, "between 0 and 1"),
        ({"sparsity": 1.7}, "between 0 and 1"),
        ({"sparsity": 0.9999}, "empty whole layers"),
        ({"pattern": "2:4", "block": (2, 2)}, "one of them at a time"),
        ({"pattern": "2:4", "scope": "layer"}, "one of them at a time"),
        ({"pattern": "3"}, "written N:M"),
        ({"macs": 1.2}, "macs must lie"),
        ({"method": "cbs", "pattern": "2:4"}, "cbs swaps"),
        ({"method": "chita", "stages": 4}, "has one stage"),
        ({"method": "chita-cd", "block_size": 10}, "has no blocks"),
        ({"model": "outputs", "method": "m-fac"}, "for CHITA methods"),
        ({"ridge": 0.0}, "ridge must be above 0"),
        ({"batch_size": 100}, "no complete mini-batch"),
        ({"method": "woodfisher", "storage": "matrix-free"}, "not held"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(program, options, message):
    with pytest.raises(UserError, match=message):
        run(program, **options)


def test_without_data_only_magnitude_works(program):
    with pytest.raises(UserError, match="needs data"):
        sparsify(program, None)
    settings = SparsifySettings(method="magnitude", batch_norm="kept")
    assert sparsify(program, None, settings=settings).facts["zeros"]


def test_an_empty_loader_is_named(program):
    with pytest.raises(UserError, match="loader is empty"):
        sparsify(program, [])


def test_samples_that_are_not_finite_are_named(program):
    data = [(x.clone(), y) for x, y in DATA]
    data[2][0][0] = float("inf")
    with pytest.raises(UserError, match="NaN or infinite"):
        sparsify(program, data, settings=SparsifySettings(method="chita-bso", samples=64, holdout=32))


def test_weights_that_are_not_finite_are_named(program):
    broken = program.clone()
    with torch.no_grad():
        broken.module().get_parameter("conv2.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="weight is NaN"):
        run(broken)


def test_training_keeps_zeros_where_a_network_was_sparsified(program):
    sparse = run(program, method="magnitude", batch_norm="kept").program
    settings = HealSettings(epochs=1, lr=0.05, distill_weight=0.0)
    healed = heal(sparse, DATA, settings=settings).program
    free = heal(sparse, DATA, settings=settings.model_copy(update={"keep_zeros": False})).program
    for name, before in sparse.module().named_parameters():
        if before.ndim > 1:
            after = healed.module().get_parameter(name)
            assert torch.equal(after == 0, before == 0)
            assert not torch.equal(after, before)
    assert float((free.module().get_parameter("conv2.weight") == 0).float().mean()) < 0.1


def sparse_initialisers(path) -> dict[str, np.ndarray]:
    tensors = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    return {str(tuple(t.shape)): t for t in tensors if t.ndim == 4 and t.shape[1] % 4 == 0}


def test_two_of_four_lasts_through_healing_int8_training_folding_and_export(program, tmp_path):
    sparse = run(program, pattern="2:4").program
    healed = heal(sparse, DATA, settings=HealSettings(epochs=1, lr=0.02, distill_weight=0.0)).program
    qat = TrainSettings(epochs=1, lr=1e-3, distill_weight=0.0)
    quantised = quantize(healed, DATA, scheme=TARGETS["ort-cpu"].scheme, samples=64, qat=qat, train=DATA).program
    for number, made in enumerate((sparse, healed, quantised)):
        for name in CONVOLUTIONS:
            assert holds_pattern(made.module().get_parameter(name), 2, 4), (number, name)
    assert "batch_norm" not in " ".join(type(m).__name__ for m in quantised.module().modules()).lower()
    for number, made in enumerate((healed, quantised)):
        export(made, tmp_path / str(number), target="ort-cpu")
        found = sparse_initialisers(tmp_path / str(number) / "model.onnx")
        assert len(found) == 2
        for shape, weight in found.items():
            assert holds_pattern(torch.from_numpy(weight.astype(np.float32)), 2, 4), shape
            assert weight.dtype == (np.int8 if number else np.float32)


def test_progress_tells_stages_and_memory(program):
    told = []
    settings = SparsifySettings(method="chita++", samples=64, holdout=32, stages=2)
    sparsify(program, DATA, settings=settings, progress=lambda done, total, **info: told.append((done, total, info)))
    assert {info["stage"] for _, _, info in told} == {"gradients", "stages"}
    assert told[-1][:2] == (2, 2)


def test_batches_of_keyword_inputs_work():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(6, 16), torch.nn.Linear(16, 3)

        def forward(self, x, scale):
            return {"logits": self.b(torch.relu(self.a(x))) * scale[:, None]}

    torch.manual_seed(0)
    data = [({"x": torch.randn(32, 6), "scale": torch.ones(32)}, torch.randint(0, 3, (32,))) for _ in range(8)]
    program = capture(Net(), (), example_kwargs=dict(split_batch(data[0])[1])).eval()

    def loss(output, target):
        return torch.nn.functional.cross_entropy(output["logits"], target)

    settings = SparsifySettings(samples=64, holdout=32, stages=2, sparsity=0.5)
    assert sparsify(program, data, loss, settings=settings).facts["zeros"] == 72


def test_layers_refitted_come_nearer_to_the_dense_network_and_keep_their_zeros(program):
    ignore = ("conv2.weight",)
    plain, fitted = (
        run(program, method="magnitude", sparsity=0.7, batch_norm="kept", ignore=ignore, refit=refit)
        for refit in ("none", "layers")
    )
    weights = [dict(result.program.module().named_parameters()) for result in (plain, fitted)]
    for name in plain.zeros:
        assert torch.equal(weights[0][name] == 0, weights[1][name] == 0)
    before = dict(program.module().named_parameters())
    assert torch.equal(weights[1]["conv2.weight"], before["conv2.weight"])
    x = DATA[0][0]
    with torch.no_grad():
        dense, *found = (p.module()(x) for p in (program, plain.program, fitted.program))
    errors = [float((y - dense).square().mean()) for y in found]
    assert errors[1] < 0.5 * errors[0]


def test_magnitude_takes_stages_only_where_something_changes_between_them(program):
    with pytest.raises(UserError, match="one stage") as refused:
        run(program, method="magnitude", stages=3)
    assert "reconstruct" in refused.value.hint
    result = run(program, method="magnitude", stages=3, refit="layers", batch_norm="kept")
    assert [entry["stage"] for entry in result.facts["stages"]] == [1, 2, 3]
    assert result.facts["zeros"] == result.facts["weights"] - int(0.4 * result.facts["weights"] + 1e-6)
    again = run(program, method="magnitude", stages=3, refit="layers", batch_norm="kept")
    for first, second in zip(result.program.module().parameters(), again.program.module().parameters(), strict=True):
        assert torch.equal(first, second)


def test_healing_in_closed_form_keeps_zeros(program):
    sparse = run(program, method="magnitude", sparsity=0.7, batch_norm="kept").program
    healed = heal(sparse, DATA, teacher=program, settings=HealSettings(method="ridge"))
    assert "reconstructed" in healed.starts
    found = dict(healed.starts["reconstructed"].module().named_parameters())
    for name, weight in sparse.module().named_parameters():
        if weight.ndim > 1:
            assert torch.equal(weight == 0, found[name] == 0)
    assert any(not torch.equal(w, found[n]) for n, w in sparse.module().named_parameters())


def test_reconstruction_is_the_default_and_beats_updates_by_gradients(program):
    found = sparsify(program, DATA, settings=SparsifySettings(sparsity=0.8, refit_samples=256))
    assert (
        found.facts["settings"] | {"method": "reconstruct", "refit": "layers", "batch_norm": "kept"}
        == found.facts["settings"]
    )
    assert len(found.facts["stages"]) == 4 and "samples" not in found.facts  # no gradients were taken
    others = [
        loss_of(run(program, method=m, sparsity=0.8, batch_norm="kept").program) for m in ("magnitude", "chita-bso")
    ]
    assert loss_of(found.program) < min(others)
    with pytest.raises(UserError, match="needs data"):
        sparsify(program, None)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = (torch.nn.Linear(16, n) for n in (16, 16, 4))
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu())


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.7}, {"pattern": "2:4"}, {"sparsity": 0.7, "ignore": ("a.weight", "b.weight")}]
)
def test_weights_that_two_layers_share_keep_their_zeros_when_layers_are_refitted(options):
    tied = capture(Tied().eval(), (torch.zeros(2, 16),)).eval()
    data = [(torch.randn(32, 16), torch.zeros(32, dtype=torch.long)) for _ in range(4)]
    sparse = sparsify(tied, data, settings=SparsifySettings(stages=2, refit_samples=128, **options)).program
    before, after = (dict(p.module().named_parameters())["a.weight"] for p in (tied, sparse))
    if "ignore" in options:
        assert torch.equal(before, after)
    else:
        assert float((after == 0).float().mean()) > 0.45
        if "pattern" in options:
            assert holds_pattern(after, 2, 4)


@pytest.mark.parametrize("macs", [0.0, 1.0, 2.0])
def test_a_share_of_multiply_adds_that_is_none_is_refused(program, macs):
    with pytest.raises(UserError, match="macs must lie"):
        run(program, macs=macs)


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.scale = torch.nn.Embedding(9, 6), torch.nn.Parameter(torch.ones(1, 6))
        self.lstm = torch.nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.gru, self.head = torch.nn.GRU(10, 8, batch_first=True), torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.gru(self.lstm(self.words(x) * self.scale)[0])[0][:, -1])


@pytest.mark.parametrize("ignore", [(), ("lstm.*",)])
def test_weights_of_recurrent_layers_stayed_dense_without_a_word(ignore):
    program = capture(Recurrent().eval(), (torch.zeros(2, 3, dtype=torch.long),)).eval()
    settings = SparsifySettings(method="magnitude", batch_norm="kept", sparsity=0.5, ignore=ignore)
    found = sparsify(program, None, settings=settings)
    matrices = {name for name, value in program.module().named_parameters() if value.ndim > 1}
    assert set(found.dense) | set(found.zeros) == matrices and set(found.zeros) == {"head.weight"}
    reasons = {name: str(why) for name, why in found.dense.items()}
    assert "(LSTM)" in reasons["lstm.weight_hh_l0_reverse"] and "(GRU)" in reasons["gru.weight_ih_l0"]
    assert "looked up" in reasons["words.weight"] and "no weight of a convolution" in reasons["scale"]
