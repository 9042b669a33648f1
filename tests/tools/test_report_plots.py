"""The plots put marks where the numbers say."""

import re
from xml.etree import ElementTree

import pytest

from secateur.tools.report_plots import (
    TOOLTIP_LIMIT,
    LogAxis,
    interval_plot,
    sensitivity_panel,
    share_bar,
    shared_axis,
    width_plot,
)

AXIS = LogAxis(-4, 0, top=0, bottom=100)


def test_a_decade_is_the_same_distance_everywhere():
    assert [AXIS.y(v) for v in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)] == pytest.approx([100, 75, 50, 25, 0])
    assert AXIS.y(-1.0) == AXIS.y(0.0) == AXIS.y(1e-9) == 100
    assert AXIS.y(50.0) == 0


def test_the_shared_axis_covers_all_groups_but_at_most_six_decades():
    axis = shared_axis([[2e-3, 5e-2], [3e-4]])
    assert (axis.low, axis.high) == (-4, -1)
    assert shared_axis([[1e-30, 1.0]]).low == shared_axis([[1e-30, 1.0]]).high - 6
    assert shared_axis([[-1.0, 0.0]]).low < shared_axis([[-1.0, 0.0]]).high
    assert shared_axis([[0.5]]).low < shared_axis([[0.5]]).high
    assert len(shared_axis([[1e-6, 0.9]]).ticks) <= 5


def panel(scores, errors, removed):
    return ElementTree.fromstring(sensitivity_panel("g", scores, errors, removed, AXIS))


def path(svg, name):
    return next(p.get("d") for p in svg.iter("path") if p.get("class") == name)


def test_units_are_sorted_and_removed_ones_are_crosses():
    svg = panel([1e-1, 1e-3, 1e-2], [0.0, 0.0, 0.0], [False, True, False])
    kept = [tuple(map(float, m)) for m in re.findall(r"M([\d.]+) ([\d.]+)h0", path(svg, "kept"))]
    assert [y for _, y in kept] == pytest.approx([50, 25])
    cross = re.match(r"M([\d.]+) ([\d.]+)l([\d.]+)", path(svg, "removed"))
    x, y, length = map(float, cross.groups())
    assert y + length / 2 == pytest.approx(75, abs=0.11)
    assert x < kept[0][0] < kept[1][0]
    titles = [t.text for t in svg.iter("title")][1:]
    assert titles == ["unit 1, removed: 0.001 ± 0", "unit 2, kept: 0.01 ± 0", "unit 0, kept: 0.1 ± 0"]


def test_error_bars_span_one_standard_error_and_end_at_the_axis():
    svg = panel([1e-2, 1e-3], [9e-3, 1.0], [False, False])
    (_, low_top, low_bottom), (_, high_top, high_bottom) = (
        tuple(map(float, m)) for m in re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", path(svg, "errors"))
    )
    assert (low_top, low_bottom) == (0, 100)  # 0.001 ± 1: from the top to below the axis
    assert high_bottom == pytest.approx(75)  # 0.01 - 0.009
    assert high_top == pytest.approx(AXIS.y(0.019), abs=0.06)


def test_wide_groups_have_no_tooltip_for_each_unit():
    def hits(n):
        return sum(r.get("class") == "hit" for r in panel([0.1] * n, [0.0] * n, [False] * n).iter("rect"))

    assert hits(TOOLTIP_LIMIT) == TOOLTIP_LIMIT
    assert hits(TOOLTIP_LIMIT + 1) == 0


def test_bars_of_the_width_plot_are_proportional():
    svg = ElementTree.fromstring(width_plot([("a", 64, 16, False), ("b", 32, 32, True)]))
    heights = {r.get("class"): float(r.get("height")) for r in svg.iter("rect") if r.get("class") != "total"}
    totals = [float(r.get("height")) for r in svg.iter("rect") if r.get("class") == "total"]
    assert totals[0] == pytest.approx(2 * totals[1], abs=0.2)
    assert heights["kept-bar"] == pytest.approx(totals[0] / 4, abs=0.2)
    assert heights["frozen"] == pytest.approx(totals[1])
    assert [t.text for t in svg.iter("title")] == ["a: 16 of 64", "b: 32 of 32, frozen"]


def test_a_share_bar_is_clipped_to_its_cell():
    widths = [
        float(list(ElementTree.fromstring(share_bar(s, "x")).iter("rect"))[1].get("width")) for s in (-1, 0.25, 7)
    ]
    assert widths == [0, 25, 100]


def test_ratios_and_their_limit_share_one_scale():
    svg = ElementTree.fromstring(interval_plot([("batch 1", 0.5, 0.4, 0.6)], limit=0.6))
    low, high = map(float, re.match(r"M([\d.]+) [\d.]+H([\d.]+)", path(svg, "interval")).groups())
    point = float(re.match(r"M([\d.]+)", path(svg, "kept"))[1])
    limit = float(re.match(r"M([\d.]+)", path(svg, "limit"))[1])
    assert low < point < high
    assert point == pytest.approx((low + high) / 2, abs=0.1)
    assert limit == pytest.approx(high, abs=0.1)
    assert "2.00×" in [t.text for t in svg.iter("text")]
