"""Dispatch, the methods without data, saved tables, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import captured
from safetensors.numpy import save_file
from torch import nn

from secateur.compress.sensitivity.rank import METHODS, check_options, options_of, rank
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.errors import UserError
from secateur.passes.capture import capture


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def program():
    return capture(net(), torch.randn(2, 1, 4, 4))


def loader(n=6, size=3):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, 1, 4, 4, generator=generator), torch.arange(n) % 3
    return list(zip(x.split(size), y.split(size), strict=True))


def hap(program, data=None, loss=F.cross_entropy, **options):
    return rank(program, loader() if data is None else data, loss, method="hap", probes=2, **options)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_every_group_that_may_shrink(method):
    program = captured("resnet_a")
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    table = rank(program, [(x, y)], F.cross_entropy, method=method, probes=2)
    assert table.method == method
    assert {n: len(s.delta_loss) for n, s in table.groups.items()} == {
        g.name: g.width for g in program.groups if g.frozen is None
    }
    for scores in table.groups.values():
        assert scores.delta_loss.dtype == scores.std_error.dtype == np.float64
        assert scores.delta_loss.shape == scores.std_error.shape and (scores.std_error >= 0).all()


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("resnet_b", lambda group: len(group.producers) > 1),
        ("resnext", lambda group: any(m.index.shape[1] > 1 for m in group.producers)),
    ],
)
def test_magnitude_is_the_mean_square_of_all_producers(name, holds):
    program = captured(name)
    table = rank(program, method="magnitude")
    group = next(g for g in program.groups if g.frozen is None and holds(g))
    weights = [program.graph_module.get_parameter(m.tensor).detach().double() for m in group.producers]
    for unit in range(group.width):
        parts = [
            w.index_select(m.axis, torch.as_tensor(m.index[unit])).flatten()
            for w, m in zip(weights, group.producers, strict=True)
        ]
        expected = float(torch.cat(parts).square().mean())
        assert table.groups[group.name].delta_loss[unit] == pytest.approx(expected)
    assert table.unit == "score"


def test_random_depends_on_the_seed_and_the_name_only(program):
    first, second = rank(program, method="random", seed=1), rank(program, method="random", seed=1)
    other = rank(program, method="random", seed=2)
    assert all((first.groups[n].delta_loss == second.groups[n].delta_loss).all() for n in first.groups)
    assert any((first.groups[n].delta_loss != other.groups[n].delta_loss).any() for n in first.groups)
    wide = rank(captured("resnet_b"), method="random")
    same_width = [s.delta_loss for s in wide.groups.values() if len(s.delta_loss) == 8]
    assert not np.array_equal(same_width[0], same_width[1])


def test_a_table_comes_back_bit_for_bit(program, tmp_path):
    path = tmp_path / "t.safetensors"
    table = hap(program)
    odd = Sensitivity("x", "score", {"a.b:#2 µ": Scores(np.array([1e-310, -0.0, 3.3]), np.zeros(3))}, {"note": "µ"})
    for saved in (table, odd, Sensitivity("empty", "loss", {}, {})):
        saved.save(path)
        back = Sensitivity.load(path)
        assert (back.method, back.unit, dict(back.facts)) == (saved.method, saved.unit, dict(saved.facts))
        assert list(back.groups) == list(saved.groups)
        for name, scores in saved.groups.items():
            assert back.groups[name].delta_loss.tobytes() == scores.delta_loss.tobytes()
            assert back.groups[name].std_error.tobytes() == scores.std_error.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def broken_tables(tmp_path):
    good = {"format": "secateur-sensitivity/1", "method": "x", "unit": "loss", "groups": ["a"], "facts": {}}
    arrays = {"a:delta_loss": np.ones(2), "a:std_error": np.ones(2)}
    variants = {
        "no metadata": (arrays, None),
        "another format": (arrays, {**good, "format": "other/9"}),
        "missing array": ({"a:delta_loss": np.ones(2)}, good),
        "NaN": ({**arrays, "a:std_error": np.array([1.0, np.nan])}, good),
        "lengths differ": ({**arrays, "a:std_error": np.ones(3)}, good),
        "single precision": ({k: v.astype(np.float32) for k, v in arrays.items()}, good),
    }
    for name, (tensors, header) in variants.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path, metadata={"sensitivity": json.dumps(header)} if header else None)
        yield path
    for name, content in (("pickle", b"\x80\x04K\x01."), ("empty", b""), ("text", b"delta_loss: 3")):
        path = tmp_path / name
        path.write_bytes(content)
        yield path


def test_what_is_no_table_is_refused(tmp_path):
    paths = list(broken_tables(tmp_path))
    assert len(paths) == 9
    for path in paths:
        with pytest.raises(UserError, match="not a table of sensitivities") as caught:
            Sensitivity.load(path)
        assert str(path) in caught.value.where
    with pytest.raises(UserError, match="no sensitivities here"):
        Sensitivity.load(tmp_path / "nowhere")


def test_a_table_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        Sensitivity("x", "loss", {}, {}).save(tmp_path / "no" / "folder")


def test_an_unknown_method_gets_a_suggestion(program):
    with pytest.raises(UserError, match=r"did you mean magnitude\?") as caught:
        rank(program, method="magnitud")
    assert ", ".join(METHODS) in caught.value.hint


def test_an_unknown_option_gets_a_suggestion(program):
    with pytest.raises(UserError, match=r"unknown option 'probe' of ranking method hap \(did you mean probes\?\)"):
        hap(program, probe=3)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("hap", {"layerwise": "yes"}, "layerwise cannot be 'yes'"),
        ("hap", {"stop": "soon"}, "stop cannot be 'soon'"),
        ("hap", {"tied": "summ"}, "tied cannot be 'summ'"),
        ("gate-ggn", {"draws": 1.5}, "draws cannot be 1.5"),
        ("magnitude", {"layerwise": True}, "unknown option 'layerwise' of ranking method magnitude"),
        (["hap"], {}, "unknown ranking method"),
    ],
)
def test_options_are_checked_without_a_network(method, options, message):
    with pytest.raises(UserError, match=message):
        check_options(method, options)


def test_options_of_the_right_type_pass():
    check_options("hap", {"layerwise": True, "stop": 1, "keep": 0.5, "tied": "max"})
    check_options("gate-ggn", {"draws": None})
    assert set(options_of("taylor")) == {"per_sample"} and not options_of("magnitude")


@pytest.mark.parametrize("method", METHODS)
def test_the_guide_lists_every_method_with_its_options(method):
    page = (Path(__file__).parents[2] / "docs" / "rank.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith(f"| `{method}` |")]
    assert len(rows) == 1
    listed = re.findall(r"`([\w-]+)`", rows[0].split("|")[5])
    named = {option for word in listed for option in (options_of(word) if word in METHODS else [word])}
    assert named == set(options_of(method))


@pytest.mark.parametrize("options", [{"probes": 1}, {"samples": 0}, {"seed": -1}, {"samples": 2.5}, {"seed": True}])
def test_values_out_of_range_are_named(program, options):
    (name,) = options
    with pytest.raises(UserError, match=f"{name} must be a whole number"):
        rank(program, loader(), F.cross_entropy, **options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "loader is empty"),
        ([torch.zeros(2, 1, 4, 4)], "pair"),
        ([(torch.zeros(0, 1, 4, 4), torch.zeros(0).long())], "no samples"),
        ([(torch.zeros(2, 5, 4, 4), torch.zeros(2).long())], "does not run on a batch"),
        ([(torch.zeros(2, 1, 4, 4), torch.tensor([0, 3]))], "labels are out of range"),
        ([(torch.zeros(2, 1, 4, 4), torch.tensor([-1, 2]))], "labels are out of range"),
        ([(torch.zeros(2, 1, 4, 4), torch.zeros(3).long())], "loss fails"),
        ([(torch.full((2, 1, 4, 4), torch.nan), torch.zeros(2).long())], "loss is nan"),
    ],
)
def test_bad_data_is_named(program, data, message):
    with pytest.raises(UserError, match=message):
        hap(program, data)


def test_labels_out_of_range_say_the_range(program):
    with pytest.raises(UserError) as caught:
        hap(program, [(torch.zeros(2, 1, 4, 4), torch.tensor([1, 7]))])
    assert "from 1 to 7" in caught.value.why and "3 outputs (0 to 2)" in caught.value.why


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, t: F.cross_entropy(o, t, reduction="none"), "must be a scalar"),
        (lambda o, t: 3.0, "must be a scalar"),
        (lambda o, t: F.cross_entropy(o, t).detach(), "no gradient"),
        (lambda o, t: F.cross_entropy(o, t) * float("inf"), "loss is inf"),
        (None, "needs a loss"),
    ],
)
def test_a_bad_loss_is_named(program, loss, message):
    with pytest.raises(UserError, match=message):
        hap(program, loss=loss)


def test_a_method_that_needs_data_says_so(program):
    with pytest.raises(UserError, match="needs data"):
        rank(program, None, F.cross_entropy)


@pytest.mark.parametrize("method", ["hap", "magnitude"])
def test_broken_weights_are_named(method):
    model = net()
    program = capture(model, torch.randn(2, 1, 4, 4))
    with torch.no_grad():
        program.graph_module.get_parameter("0.weight")[1, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN") as caught:
        rank(program, loader(), F.cross_entropy, method=method)
    assert caught.value.where == "0.weight"


def test_half_precision_is_refused_where_it_would_not_do():
    program = capture(net().bfloat16(), torch.randn(2, 1, 4, 4).bfloat16())
    with pytest.raises(UserError, match="bfloat16"):
        hap(program, [(torch.randn(2, 1, 4, 4).bfloat16(), torch.zeros(2).long())])


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature(program):
    table = hap(program, loss=lambda output, target: output.sum() / len(target))
    assert all((scores.delta_loss == 0).all() for scores in table.groups.values())
