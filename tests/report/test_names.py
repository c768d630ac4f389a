"""Names with markup in them: they are shown letter by letter on the page and in Markdown."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_pages import Tags
from slowly import few
from synthetic_sweep import write_sweep

from ld3_dist.report import write_report
from ld3_dist.report.formats import visible
from ld3_dist.report.markdown import escaped

NAMES = [
    "edm:[/red]x[bold]",
    r"a\b\\[c]\|d",
    "a|b`c`*d*_e_<i>f</i>&lt;~~g~~",
    "<script>alert('1')</script>",
    "$x_{1$ and $y$",
    "{{ page.name }}{% if %}{# #}",
    "tab\tbell\x07esc\x1b[31mred",
    "line\nbreak\u2028and\u202eback",
    "![i](u) [l](u)",
]
TINY = {"solvers": ("heun",), "nfes": (4,), "gammas": (0.0,), "seeds": (0,), "broken": False}


def rendered(markdown: str) -> str:
    """The text that a reader of Markdown sees in its last table cell, or paragraph."""
    html = MarkdownIt("commonmark").enable("table").render(markdown)
    inside = re.findall(r"<(?:td|p)>(.*?)</(?:td|p)>", html, re.S)[-1]
    assert "<" not in inside, f"{inside!r} has markup"
    return unescape(inside)


def in_table(text: str) -> str:
    return rendered(f"| a |\n| --- |\n| {escaped(text)} |\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_markdown_is_read_back(name: str) -> None:
    assert in_table(name) == visible(name)
    assert rendered(f"On {escaped(name)}") == f"On {visible(name)}"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab_|\\`*[]()<>&~!$#:-1 \n\x1b", min_size=1, max_size=12))
def test_any_name_in_markdown_is_read_back(name: str) -> None:
    assert in_table(f"x{name}x") == visible(f"x{name}x")


@given(st.text())
def test_a_visible_text_is_one_line_that_can_be_written(text: str) -> None:
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)
    shown.encode()


def test_plain_names_stay_as_they_are() -> None:
    for name in ("log_snr", "unipc-3", "digits/class/w1", "größe · 4 NFE", "模型"):
        assert escaped(name) == name


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", few(NAMES, NAMES[::3]))
def test_a_model_of_any_name_has_a_page(tmp_path: Path, name: str) -> None:
    write_sweep(tmp_path, models=(name, "other"), **TINY)
    paths = write_report(tmp_path, figures=["distance"])
    assert paths.warnings == ()
    page = Path(paths.html).read_text()
    tags = Tags(page).seen
    assert not {tag for tag, _ in tags} & {"i", "img"}
    assert sum(tag == "script" for tag, _ in tags) == 2  # the data and the page's own
    headings = re.findall(r"<h2>(.*?)</h2>", page, re.S)
    assert visible(name) in [unescape(heading) for heading in headings]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page, re.S)
    assert visible(name) not in cells or name.isalnum()  # one model's table does not repeat it
    rows = Path(paths.markdown).read_text().splitlines()
    assert len([row for row in rows if row.startswith("|")]) == 2 + 2


@pytest.mark.parametrize("name", few(["a$b$c", r"$\frac{", "_x[", "\x1b[0m"], [r"$\frac{"]))
def test_solvers_of_any_name_are_drawn(tmp_path: Path, name: str) -> None:
    write_sweep(tmp_path, **(TINY | {"solvers": (name,), "gammas": (0.0, 0.01)}))
    paths = write_report(tmp_path)
    assert paths.warnings == ()
    assert len(paths.figures) == 5
