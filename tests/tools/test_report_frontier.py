"""The frontier in the report: every point is on it, in order, and names are escaped."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from report_sample import report_data

from secateur.compress.planner.frontier import Frontier, Point
from secateur.tools.report import render_report
from secateur.tools.report_frontier import frontier_plot

POINTS = tuple(
    Point(loss, {"latency at batch 8": cost, "macs": cost / 2}, {}, True)
    for loss, cost in ((0.0, 0.9), (0.1, 0.6), (0.5, 0.3), (2.0, 0.2))
)
FOUND = Frontier("latency", "loss", POINTS)


def test_points_lie_where_their_numbers_say():
    svg = str(frontier_plot(FOUND))
    ElementTree.fromstring(svg)
    dots = [(float(x), float(y)) for x, y in re.findall(r'class="kept" stroke-width="8" d="M([\d.]+) ([\d.]+)h0"', svg)]
    assert len(dots) == len(POINTS)
    assert [x for x, _ in dots] == sorted((x for x, _ in dots), reverse=True)
    assert [y for _, y in dots] == sorted((y for _, y in dots), reverse=True)  # a larger loss lies higher
    assert "latency at batch 8 60.0 %" in svg and "90%" in svg


def test_one_point_alone_is_drawn():
    ElementTree.fromstring(str(frontier_plot(replace(FOUND, points=POINTS[:1]))))


def test_the_report_shows_the_frontier_if_there_is_one(tmp_path):
    assert "Plans around this one" not in render_report(report_data())
    assert "Plans around this one" in render_report(replace(report_data(), frontier=FOUND))


def test_a_frontier_is_read_back(tmp_path):
    FOUND.save(tmp_path / "frontier.json")
    assert Frontier.load(tmp_path / "frontier.json") == FOUND
