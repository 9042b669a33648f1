"""`verify` finds what a faulty rewrite would leave; shapes are propagated; passes are run with their checks."""

from dataclasses import dataclass, replace

import pytest
import torch
from nets import NETS, captured
from torch import nn

from secateur.errors import Allowed, Refused, UserError
from secateur.passes.passbase import JournalEntry, Pass, PassResult, run_pass, run_passes
from secateur.passes.program import Program
from secateur.passes.shapes import batch_size, propagate, resize_batch, values_of
from secateur.passes.tidy import tidy
from secateur.passes.verify import InvalidProgram, verify


@pytest.mark.parametrize("name", NETS)
def test_captured_programs_hold(name):
    program = captured(name)
    verify(program)
    verify(program.clone(step="copy"))


def narrow(program: Program) -> None:
    convolution = program.graph_module.get_submodule("0")
    convolution.weight = nn.Parameter(convolution.weight[:-1].detach().clone())


def narrow_consistently(program: Program) -> None:
    narrow(program)
    program.graph_module.get_submodule("0").out_channels -= 1


def wrong_groups(program: Program) -> None:
    program.graph_module.get_submodule("0").groups = 2


def wrong_statistics(program: Program) -> None:
    program.graph_module.get_submodule("1").running_var = torch.ones(3)


def dead_node(program: Program) -> None:
    graph = program.graph
    image = next(iter(graph.nodes))
    with graph.inserting_after(image):
        graph.call_function(torch.ops.aten.relu.default, (image,))


def missing_module(program: Program) -> None:
    program.graph_module.delete_submodule("0")


def foreign_module(program: Program) -> None:
    program.graph_module.set_submodule("2x", nn.PReLU())
    relu = next(n for n in program.graph.nodes if n.target is torch.ops.aten.relu.default)
    with program.graph.inserting_after(relu):
        node = program.graph.call_module("2x", (relu,))
    relu.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)


def foreign_call(program: Program) -> None:
    next(n for n in program.graph.nodes if n.target is torch.ops.aten.relu.default).target = torch.relu


def unused_module(program: Program) -> None:
    program.graph_module.add_submodule("left.over", nn.Linear(2, 2))


def unused_buffer(program: Program) -> None:
    program.graph_module.register_buffer("left_over", torch.zeros(1))


def stale_shapes(program: Program) -> None:
    node = next(iter(program.graph.nodes))
    node.meta["val"] = node.meta["val"][:1]


def baked_batch(program: Program) -> None:
    flatten = next(n for n in program.graph.nodes if "flatten" in n.name)
    with program.graph.inserting_after(flatten):
        view = program.graph.call_function(torch.ops.aten.view.default, (flatten, [2, 48]))
    flatten.replace_all_uses_with(view, delete_user_cb=lambda user: user is not view)
    propagate(program)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (narrow, "0.weight has shape"),
        (narrow_consistently, "shapes do not fit at batch size 2"),
        (wrong_groups, "do not divide into 2 groups"),
        (wrong_statistics, "1.running_var has shape"),
        (dead_node, "dead node"),
        (missing_module, "malformed"),
        (foreign_module, "a type that no program may hold"),
        (foreign_call, "which no program may call"),
        (unused_module, "unused"),
        (unused_buffer, "unused"),
        (stale_shapes, "propagate"),
        (baked_batch, "shapes do not fit at batch size 3"),
    ],
)
def test_faults_are_found(fault, message):
    program = captured("plain")
    fault(program)
    with pytest.raises(InvalidProgram, match=message):
        verify(program)


def test_a_static_batch_is_checked_at_that_batch_only():
    program = captured("plain")
    baked_batch(program)
    verify(replace(program, static_batch="for the test"))


def test_shapes_follow_the_inputs():
    program = captured("resnet_a")
    args, kwargs = resize_batch(program.example_args, program.example_kwargs, 7)
    assert batch_size(args, kwargs) == 7
    before = {k: v.clone() for k, v in program.graph_module.state_dict().items()}
    program.train()
    values = {node.name: value for node, value in values_of(program.graph_module, args, kwargs).items()}
    assert program.graph_module.training and program.graph_module.get_submodule("bn1").training
    assert values["sym_size"] == 7
    assert values["layer2_0_shortcut_pad"].shape == (7, 16, 4, 4)
    propagate(program.graph_module, args, kwargs)
    assert next(iter(program.graph.nodes)).meta["val"].shape[0] == 7
    after = program.graph_module.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_clone_shares_no_weights_and_keeps_shapes():
    program = captured("plain")
    copy = program.clone(step="copy")
    own = {id(p) for p in program.graph_module.parameters()}
    assert not own & {id(p) for p in copy.graph_module.parameters()}
    assert copy.history == ("capture", "copy")
    assert [n.meta.get("path") for n in copy.graph.nodes] == [n.meta.get("path") for n in program.graph.nodes]


def test_tidy_drops_what_nothing_uses_and_keeps_the_mode():
    program = captured("plain").train()
    dead_node(program), unused_module(program), unused_buffer(program)
    tidied = replace(program, graph_module=tidy(program.graph_module))
    verify(tidied)
    assert tidied.graph_module.training


@dataclass(frozen=True)
class Rename:
    """A pass for the tests."""

    name: str = "rename"
    modifies: bool = True
    answer: Allowed | Refused = Allowed()  # noqa: RUF009
    breaks: bool = False

    def requires(self, program: Program) -> Allowed | Refused:
        return self.answer

    def run(self, program: Program) -> PassResult:
        changed = program.clone(step=self.name)
        if self.breaks:
            narrow(changed)
        refused = Refused("nothing to rename", where="0")
        return PassResult(changed, self.modifies, (JournalEntry("0", "renamed", None if self.modifies else refused),))

    def ensures(self, program: Program) -> None:
        if program.history[-1] != self.name:
            raise InvalidProgram("no history")


def test_passes_are_checked():
    program = captured("plain")
    assert isinstance(Rename(), Pass)
    result = run_passes([Rename(), Rename("again")], program, debug=True)
    assert result.program.history == ("capture", "rename", "again") and result.modified and len(result.journal) == 2
    with pytest.raises(UserError, match="changed nothing") as caught:
        run_pass(Rename(modifies=False), program)
    assert caught.value.why == "nothing to rename"
    assert not run_pass(Rename(modifies=False), program, allow_unmodified=True).modified
    with pytest.raises(UserError, match="cannot run on this program"):
        run_pass(Rename(answer=Refused("no", hint="yes")), program)
    with pytest.raises(InvalidProgram):
        run_pass(Rename(breaks=True), program, debug=True)
