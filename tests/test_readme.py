"""README and documentation: their code runs, their numbers are those of the committed results,
their links lead somewhere.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
CELLS = json.loads((ROOT / "results/benchmarks/learning.json").read_text())["cells"]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*.md")])
METHODS = ("hand-made", "start", "paper", "default", "coefficients")


def geometric(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def fresh(method: str, **where: object) -> list[float]:
    cells = [c for c in CELLS if all(c[key] == value for key, value in where.items())]
    return [cell["fresh"][method]["loss"] for cell in cells]


def rows(page: str, head: str) -> list[list[str]]:
    """The rows of the table whose heading begins with `head`."""
    lines = page[page.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_the_readme_is_measured() -> None:
    found = rows(README, "| evaluations |")
    assert [int(row[0]) for row in found] == [4, 6, 8, 10]
    for nfe, *values in found:
        for method, value in zip(
            ("hand-made", "paper", "default", "coefficients"), values, strict=True
        ):
            assert value == f"{geometric(fresh(method, nfe=int(nfe))):.3g}"


def test_the_table_of_the_benchmarks_is_measured() -> None:
    found = rows(BENCHMARKS, "| solver, NFE |")
    assert len(found) == len(CELLS) == 16
    for name, *values in found:
        solver, nfe = name.split(", ")
        for method, value in zip(METHODS, values, strict=True):
            (loss,) = fresh(method, solver=solver, nfe=int(nfe))
            assert value == f"{loss:.3g}"


@pytest.mark.parametrize(
    ("page", "sentence", "method", "base", "worst"),
    [
        (README, "ends at {mean:.2f} of the published procedure's loss (worst {most:.2f})",
         "default", "paper", True),
        (README, "coefficients at {mean:.2f}", "coefficients", "paper", False),
        (BENCHMARKS, "`default` / `paper` {mean:.2f} (worst cell {most:.2f})",
         "default", "paper", True),
        (BENCHMARKS, "`coefficients` / `paper` {mean:.2f}", "coefficients", "paper", False),
    ],
    ids=["readme default", "readme coefficients", "page default", "page coefficients"],
)  # fmt: skip
def test_ratios_in_prose(page: str, sentence: str, method: str, base: str, worst: bool) -> None:
    ratios = [a / b for a, b in zip(fresh(method), fresh(base), strict=True)]
    text = sentence.format(mean=geometric(ratios), most=max(ratios))
    assert text in " ".join(page.split()), text


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = README.split("<!-- api -->")[1].split("```")[1].removeprefix("python\n")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "mine.json").is_file()
    assert len(names["images"]) == 16  # type: ignore[arg-type]
    assert len(names["scores"]) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
