"""Implants: small stand-ins compute some channels of a layer, in parallel with the filters that stay whole.

    y = conv_k×k(x)    becomes    y = cat(conv_k×k(x)[kept], conv_1×1(x)[implanted])

Consumers are permuted offline (see `implant_order`), so that nothing is gathered or scattered at run time. Batch norm
and activations that alone follow the layer go into both branches: they fold into the convolutions as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import Allowed, Refused, UserError, did_you_mean
from .implant_branch import split
from .implant_form import FORMS, INITS, RANKED, Implant, Implants, factors, filters, layers, replaceable, weights_of
from .implant_order import Reordering, find_order
from .labels.flow import canonical_names, shape_of
from .labels.groups import Group, Member
from .labels.rule import set_argument
from .labels.rules_join import pad_amounts
from .labels.selection import Keep, check_keep, kept_positions
from .program import Program
from .prune import apply, slice_tensors
from .shapes import propagate
from .tidy import tidy


@dataclass(frozen=True)
class Rows:
    """Outputs of a layer of the network before: where those of a layer now come from.

    Attributes:
        layer: Module path before.
        index: int64: its output channels, in the order of the layer now.
    """

    layer: str
    index: np.ndarray


@dataclass(frozen=True)
class StandIn:
    """What replaces some filters of one layer.

    Attributes:
        rows: The layer and its filters that are replaced.
        form: One of `FORMS`, but not `center`.
        layers: Module paths of its own layers, first to last.
    """

    rows: Rows
    form: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Implanted:
    """A program with implants.

    Attributes:
        program: The program.
        stand_ins: The new layers, in the order of the graph.
        rows: For every convolution and linear layer that computes channels of one that was there before: which.
    """

    program: Program
    stand_ins: tuple[StandIn, ...] = ()
    rows: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """Filters of one layer that are to be replaced together.

    Attributes:
        layer: Module path.
        rows: int64: the filters.
        form: One of `FORMS`.
        rank: Of a ranked form.
    """

    layer: str
    rows: np.ndarray
    form: str
    rank: int | None


def implantable(program: Program, group: Group, form: str = "pointwise") -> Allowed | Refused:
    """Whether units of a group can be computed by stand-ins of this form, whichever they are."""
    found = _sites(program, group, Implant((0,), form))
    if isinstance(found, Refused):
        return found
    if form == "center" or group.width == 1:
        return Allowed()
    order = find_order(program, {(m.tensor, m.axis): m.index[0] for m in group.producers})
    return order if isinstance(order, Refused) else Allowed()


def joint_order(program: Program, groups: Sequence[Group]) -> Reordering | Refused:
    """The permutation by which units of all these groups can lie last, if there is one."""
    last: dict[tuple[str, int], list[np.ndarray]] = {}
    for group in groups:
        for member in group.producers:
            last.setdefault((member.tensor, member.axis), []).append(member.index[0])
    return find_order(program, {key: np.concatenate(rows) for key, rows in last.items()})


def replaced_layers(program: Program, group: Group, chosen: Implant) -> dict[str, np.ndarray] | Refused:
    """Filters that an implant replaces, by module path; a refusal if there are none."""
    found = _sites(program, group, chosen)
    return found if isinstance(found, Refused) else {site.layer: site.rows for _, site in found}


def implant(program: Program, implants: Implants, *, keep: Keep | None = None, init: str = "center") -> Implanted:
    """Removes units and puts stand-ins in the place of others; a function of its arguments alone.

    All k×k convolutions (linear layers too where the form allows) that compute an implanted unit get a stand-in;
    others, such as a 1×1 convolution on the shortcut of a residual block, compute it as before.

    Args:
        program: The program; not changed.
        implants: What stands in for which units, by group name.
        keep: Kept units by group name, the implanted ones among them; groups that are not named are kept whole.
        init: Weights of the stand-ins: `center` takes them from the filters (the centre of the kernel, or a truncated
            decomposition), `zeros` computes nothing at first.

    Raises:
        UserError: An unknown or frozen group, a wrong unit, a form that does not fit, or an order of channels that the
            network does not allow.
    """
    analysis = program.analysis
    groups = {group.name: group for group in program.groups}
    kept = check_keep(analysis, keep or {})
    checked = check_implants(program, implants, kept, init)
    smaller = apply(program, kept, allow_unchanged=True) if kept else program.clone()
    smaller = replace(smaller, history=(*smaller.history, "implant"))
    positions = kept_positions(analysis, kept)
    sites, last = _placed(program, checked, positions)
    order = find_order(smaller, last)
    if isinstance(order, Refused):
        answers = ((name, implantable(program, groups[name], chosen.form)) for name, chosen in checked.items())
        name, refused = next(((n, a) for n, a in answers if isinstance(a, Refused)), (", ".join(checked), order))
        raise refusal(name, checked[name].form if name in checked else "", refused)
    _reorder(smaller, order)
    rows = _rows(program, positions, order)
    stand_ins = []
    for site in sites:
        if site.form == "center":
            _clear_beside_center(smaller, site)
        else:
            stand_ins.append((site, split(smaller, site.layer, _layers(smaller, site, init))))
    result = replace(smaller, graph_module=tidy(smaller.graph_module))
    propagate(result)
    found = []
    for site, paths in stand_ins:
        whole = rows.pop(site.layer)
        kept_rows, replaced = np.split(whole.index, [len(whole.index) - len(site.rows)])
        if len(kept_rows):
            rows[site.layer] = Rows(whole.layer, kept_rows)
        rows[paths[-1]] = Rows(whole.layer, replaced)
        found.append(StandIn(rows[paths[-1]], site.form, paths))
    return Implanted(result, tuple(found), rows)


def replace_filters(program: Program, implants: Implants, init: str = "center") -> None:
    """Overwrites the filters of implanted units by what their stand-ins compute, in place: the oracle of `implant`."""
    sites, _ = _placed(program, check_implants(program, implants, {}, init), {})
    for site in sites:
        layer: Any = program.graph_module.get_submodule(site.layer)
        with torch.no_grad():
            index = torch.from_numpy(site.rows).to(layer.weight.device)
            parts = factors(layer.weight[index], site.form, site.rank, init if site.form != "center" else "center")
            layer.weight[index] = filters(parts, site.form, layer.weight.shape[2:])


def check_implants(program: Program, implants: Implants, kept: Mapping[str, np.ndarray], init: str) -> Implants:
    """Checks implants; groups without any are left out.

    Raises:
        UserError: See `implant`.
    """
    groups = {group.name: group for group in program.groups}
    if init not in INITS:
        raise UserError(f"unknown start of implants {init!r}{did_you_mean(init, INITS)}", hint=_there_is(INITS))
    checked = {}
    for name, chosen in implants.items():
        if name not in groups:
            raise UserError(f"no group is called {name!r}{did_you_mean(name, groups)}", hint="see program.groups")
        check_form(chosen.form, chosen.rank, where=name)
        group = groups[name]
        outside = [unit for unit in chosen.units if not 0 <= unit < group.width]
        if outside:
            why = f"its units are 0 to {group.width - 1}"
            raise UserError(f"group {name!r} has no unit {outside[0]}", where="implants", why=why)
        if len(set(chosen.units)) < len(chosen.units):
            raise UserError(f"a unit of group {name!r} is implanted twice", where="implants")
        gone = set(chosen.units) - set(kept[name].tolist()) if name in kept else set()
        if gone:
            raise UserError(
                f"unit {min(gone)} of group {name!r} is removed and implanted",
                where="implants",
                hint="a unit that gets an implant stays: take it out of the removed ones",
            )
        if chosen.units:
            sites = _sites(program, group, chosen)
            if isinstance(sites, Refused):
                raise refusal(name, chosen.form, sites)
            checked[name] = chosen
    return checked


def check_form(form: str, rank: int | None, *, where: str) -> None:
    """Checks the form of an implant, and that it has a rank exactly if it needs one.

    Raises:
        UserError: It does not.
    """
    if form not in FORMS:
        raise UserError(f"unknown implant {form!r}{did_you_mean(form, FORMS)}", where=where, hint=_there_is(FORMS))
    if (form in RANKED) != (rank is not None) or (rank is not None and rank < 1):
        needs = "needs a rank of at least 1" if form in RANKED else "has no rank"
        raise UserError(f"an implant of the form {form} {needs}", where=where, hint="form: low-rank, rank: 4")


def refusal(name: str, form: str, refused: Refused) -> UserError:
    """The error of asking for an implant that is refused."""
    return UserError(
        f"{name} cannot have implants" + (f" of the form {form}" if form else ""),
        where=refused.where,
        why=refused.reason,
        hint=refused.hint,
    )


def _there_is(names: Sequence[str]) -> str:
    return f"there is: {', '.join(names)}"


def _callers(program: Program) -> dict[str, list[fx.Node]]:
    """Nodes that call each layer, by the canonical names of its tensors."""
    names = canonical_names(program.graph_module)
    found: dict[str, list[fx.Node]] = {}
    for node in program.graph.find_nodes(op="call_module"):
        for tensor in program.graph_module.get_submodule(str(node.target)).state_dict(keep_vars=True).values():
            found.setdefault(names[id(tensor)], []).append(node)
    return found


def _sites(program: Program, group: Group, chosen: Implant) -> list[tuple[Member, Site]] | Refused:
    """The layers of a group whose filters can be replaced; a refusal if there are none."""
    callers, reasons, found = _callers(program), [], []
    for member in group.producers:
        nodes = callers.get(member.tensor, [])
        paths = {str(node.target) for node in nodes}
        layer = program.graph_module.get_submodule(min(paths)) if paths else None
        answer: Allowed | Refused = Refused("nothing with weights computes it")
        if layer is not None:
            answer = replaceable(layer, chosen.form)
            if isinstance(answer, Allowed) and len(nodes) > 1:
                answer = Refused("its filters are used in several places", hint="keep these units whole")
        if isinstance(answer, Refused):
            reasons.append(Refused(answer.reason, ", ".join(sorted(paths)), answer.hint))
            continue
        rows = member.index[list(chosen.units)].reshape(-1)
        found.append((member, Site(min(paths), rows, chosen.form, chosen.rank)))
    if found:
        return found
    return reasons[0] if reasons else Refused("no layer computes it", group.name)


def _placed(
    program: Program, implants: Implants, positions: Mapping[str, Mapping[int, np.ndarray]]
) -> tuple[list[Site], dict[tuple[str, int], np.ndarray]]:
    """Sites in the order of the graph, one a layer, and the rows that come last; both in the smaller program's rows."""
    groups = {group.name: group for group in program.groups}
    sites: dict[str, list[Site]] = {}
    last: dict[tuple[str, int], list[np.ndarray]] = {}

    def now(member: Member, rows: np.ndarray) -> np.ndarray:
        stay = positions.get(member.tensor, {}).get(member.axis)
        return rows if stay is None else np.searchsorted(stay, rows)

    for name, chosen in implants.items():
        found = _sites(program, groups[name], chosen)
        assert not isinstance(found, Refused)
        for member, site in found:
            placed = Site(site.layer, now(member, site.rows), site.form, site.rank)
            sites.setdefault(site.layer, []).append(placed)
        if chosen.form != "center":
            for member in groups[name].producers:
                rows = now(member, member.index[list(chosen.units)].reshape(-1))
                last.setdefault((member.tensor, member.axis), []).append(rows)
    joined = [site for node in program.graph.nodes for site in _joined(sites.pop(str(node.target), []))]
    return joined, {key: np.concatenate(parts) for key, parts in last.items()}


def _joined(sites: list[Site]) -> list[Site]:
    """Sites of one layer as one; ranks add up."""
    if not sites:
        return []
    centers = [site for site in sites if site.form == "center"]
    others = [site for site in sites if site.form != "center"]
    forms = sorted({site.form for site in others})
    if len(forms) > 1:
        raise UserError(
            f"{sites[0].layer} would get implants of several forms: {', '.join(forms)}",
            why="the groups that it computes ask for different ones",
            hint="give these groups the same form",
        )
    joined = []
    for part in (centers, others):
        if part:
            rank = sum(site.rank for site in part if site.rank is not None) or None
            joined.append(Site(part[0].layer, np.concatenate([site.rows for site in part]), part[0].form, rank))
    return joined


def _reorder(program: Program, order: Reordering) -> None:
    """Permutes all weights, in place, and sets the amounts of paddings."""
    slice_tensors(program.graph_module, order.positions)
    for node in program.graph.nodes:
        if node.name in order.pads:
            axis, front, back = order.pads[node.name]
            amounts = pad_amounts(node, len(shape_of(node)))
            amounts[axis] = (front, back)
            flat = [amount for pair in reversed(amounts) for amount in pair]
            set_argument(node, "pad", flat)


def _rows(program: Program, positions: Mapping[str, Mapping[int, np.ndarray]], order: Reordering) -> dict[str, Rows]:
    """Where the outputs of every convolution and linear layer come from."""
    names, found = canonical_names(program.graph_module), {}
    for node in program.graph.find_nodes(op="call_module"):
        layer = program.graph_module.get_submodule(str(node.target))
        if isinstance(layer, _ConvNd | nn.Linear) and not getattr(layer, "transposed", False):
            tensor = names[id(layer.weight)]
            stay = positions.get(tensor, {}).get(0, np.arange(len(layer.weight)))
            index = order.positions.get(tensor, {}).get(0, np.arange(len(stay)))
            found[str(node.target)] = Rows(str(node.target), stay[index])
    return found


def _clear_beside_center(program: Program, site: Site) -> None:
    layer: Any = program.graph_module.get_submodule(site.layer)
    with torch.no_grad():
        index = torch.from_numpy(site.rows).to(layer.weight.device)
        layer.weight[index] = factors(layer.weight[index], "center")[0]


def _layers(program: Program, site: Site, init: str) -> list[nn.Module]:
    """The layers of the stand-in for the last filters of a layer."""
    layer = program.graph_module.get_submodule(site.layer)
    assert isinstance(layer, _ConvNd | nn.Linear)
    count = len(site.rows)
    weight = layer.weight.detach()[-count:]
    bias = layer.bias.detach()[-count:] if layer.bias is not None else None
    if weights_of(weight.shape, site.form, site.rank) >= weight.numel():
        raise UserError(
            f"the implant of {site.layer} would be no smaller than the filters that it replaces",
            why=f"{site.form} of rank {site.rank} has as many weights as {count} filters",
            hint="lower the rank, or keep these units whole",
        )
    return layers(layer, factors(weight, site.form, site.rank, init), site.form, bias)
