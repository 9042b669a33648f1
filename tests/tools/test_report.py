"""The report holds the numbers it was given, and needs nothing but itself."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from report_sample import report_data

from secateur.tools.report import (
    GroupRow,
    ReportData,
    Stage,
    count,
    estimate,
    ms,
    points,
    render_report,
    size,
    write_report,
)
from secateur.tools.report_scatter import Scatter


class Document(HTMLParser):
    """Text, tags and attributes of a page; complains about tags that do not nest."""

    VOID = frozenset({"meta", "br", "hr", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(f"{data} ")

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def cells(html: str, row_with: str) -> list[str]:
    """The cells of the table row that holds a text."""
    rows = [row for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL) if row_with in unescape(row)]
    assert len(rows) == 1, f"{len(rows)} rows with {row_with!r}"
    return [unescape(re.sub(r"<.*?>", "", cell)).strip() for cell in re.findall(r"<td.*?</td>", rows[0], re.DOTALL)]


def test_it_is_one_file_without_anything_external(tmp_path):
    html = write_report(report_data(), tmp_path / "report.html").read_text(encoding="utf-8")
    page = Document(html)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|data:", html.replace("prefers-color-scheme", ""))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in {"src", "href", "onload", "onclick", "srcset"}]
    assert page.tags.count("html") == 1


def test_the_stages_are_shown_with_their_change_and_cost():
    html = render_report(report_data())
    assert cells(html, '<td>dense FP32</td><td class="number">92') == [
        "dense FP32",
        "92.60%",
        "",
        "269.7 k",
        "40.6 M",
        "1.10 MB",
        "0.461 ms",
        "12.8 ms",
    ]
    assert cells(html, "healed</td><td") == ["healed", "92.14%", "−0.46", "140.1 k", "20.0 M", "–", "–", "–"]
    assert cells(html, "INT8 artifact</td><td")[:3] == ["INT8 artifact", "91.99%", "−0.61"]


def test_the_headline_says_passed_or_names_what_broke():
    passed, refused = Document(render_report(report_data())).words, Document(render_report(report_data(False))).words
    assert "Passed: every limit holds" in passed
    assert "Refused: 1 limit broken (accuracy drop)." in refused
    assert "2.60×" in passed
    assert "4.25×" in passed


def test_a_run_that_stopped_before_its_gates_says_so():
    assert "The gates have not been run." in Document(render_report(replace(report_data(), verdict=None))).words


def test_every_gate_has_its_measurement_limit_and_state():
    html = render_report(report_data(False))
    assert cells(html, "points</td>") == ["accuracy", "drop", "1.74 points", "≤ 1 points", "failed", "± 0.21 (paired)"]
    assert cells(html, "integer convolutions") == [
        "kernels",
        "integer convolutions",
        "100%",
        "≥ 100%",
        "passed",
        "21 of 21",
    ]


def test_every_group_has_a_row_a_bar_and_a_panel():
    data = report_data()
    html = render_report(data)
    for group in data.groups:
        row = cells(html, f"<code>{group.name}</code>")
        assert f"{group.kept} / {group.total}" in row
        label = f"<title>{group.name}: {group.kept} of {group.total}"
        assert html.count(f"{label}<") + html.count(f"{label}, frozen<") == 2  # in the plot, and in the table
        assert (f"{group.name}: {group.total - group.kept} of {group.total} units removed" in html) == bool(
            group.scores
        )
    assert "frozen: an operation without a rule" in cells(html, "<code>conv1</code>")[-1]


def test_hashes_notes_kernels_facts_and_command_are_there():
    data = report_data()
    words = Document(render_report(data)).words
    for name, file in data.files.items():
        assert name in words
        assert file["sha256"] in words
    assert data.command in words
    assert data.notes[0] in words
    assert "21 of 21 convolutions and 0 of 1 matrix products run as integer kernels" in words
    assert "linear Gemm its input is not quantised" in words
    assert all(label in words and value in words for label, value in data.facts)


def test_what_users_name_is_escaped():
    evil = '<script>alert("x")</script>'
    group = GroupRow(evil, 4, 2, 0.1, 0.01, evil, scores=(1, 2, 3, 4), score_errors=(0, 0, 0, 0), removed=(0, 1))
    html = render_report(replace(report_data(), title=evil, command=evil, groups=(group,), notes=(evil,)))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 6


@pytest.mark.parametrize("unit", ["loss", "score"])
def test_a_verified_ranking_is_plotted(unit):
    labels = ["conv1, unit 3", "conv1, unit 5", "<b>"]
    scatter = Scatter(labels, [2e-3, 1e-2, -1.0], [1e-4, 0.0, 0.0], [1e-3, 1e-1, 1e-2], unit, ["Spearman 0.50"])
    html = render_report(replace(report_data(), verification=scatter, score_unit=unit))
    assert "Spearman 0.50" in Document(html).words and "&lt;b&gt;: predicted" in html
    plot = html[html.index('class="plot scatter"') :]
    plot = plot[: plot.index("</svg>")]
    (dots,) = re.findall(r'class="kept"[^>]* d="(M[^"]*)"', plot)
    first, second, third = (tuple(map(float, dot)) for dot in re.findall(r"M([\d.]+) ([\d.]+)h0", dots))
    assert third[0] < first[0] < second[0] and second[1] < third[1] < first[1]
    assert ('class="limit"' in plot) == (unit == "loss")
    assert "The ranking, verified" not in render_report(report_data())


def test_the_least_that_a_run_can_know_still_renders():
    page = Document(render_report(ReportData("x", "secateur compile x.yaml", (Stage("dense FP32"),))))
    assert "dense FP32" in page.words
    assert "None" not in page.words
    assert "nan" not in page.words.lower()


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (estimate(0.0116, 0.000577), "0.01160 ± 0.00058"),
        (estimate(2.64e-4, 3.46e-5), "(2.64 ± 0.35)·10⁻⁴"),
        (estimate(-3e-7, 1e-7), "(−3.0 ± 1.0)·10⁻⁷"),
        (estimate(None), "–"),
        (estimate(0.0, 0.0), "0.00"),
        (count(269_722), "269.7 k"),
        (count(12), "12"),
        (size(1_095_312), "1.10 MB"),
        (size(999), "999 B"),
        (ms(4.612e-4), "0.461 ms"),
        (ms(0.12345), "123 ms"),
        (ms(2e-6), "0.00200 ms"),
        (points(-0.461), "−0.46"),
        (points(-0.001), "±0.00"),
        (points(1.0), "+1.00"),
    ],
)
def test_numbers_are_written_as_people_read_them(shown, expected):
    assert shown == expected
