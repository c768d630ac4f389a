"""No link of a page is dead: files, folders and headings are there, pages of the reference too."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import generated
import pytest
import yaml
from pages import DOCS, PAGES, ROOT, prose, slugs

LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:docs|experiments|ld3_dist|results|tests)/[\w./-]*\w\.\w+)`")


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """The generated pages by their paths from the root."""
    return {f"docs/{path}": text for path, text in generated.pages().items()}


def faults(page: Path, text: str, made: dict[str, str]) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        here = page.relative_to(ROOT).as_posix()
        path = (
            posixpath.normpath(posixpath.join(posixpath.dirname(here), target)) if target else here
        )
        if path not in made and not (ROOT / path).exists():
            found.append(f"{here}: {link} is not there")
        elif anchor:
            read = made.get(path) or (text if path == here else (ROOT / path).read_text())
            if anchor not in slugs(read):
                found.append(f"{here}: {link} has no such heading")
        if page.is_relative_to(DOCS) and (ROOT / path).is_dir():
            found.append(f"{here}: {link} is a folder, which the site cannot show; link to a file")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path, made: dict[str, str]) -> None:
    text = page.read_text(encoding="utf-8")
    assert not faults(page, text, made), "\n".join(faults(page, text, made))
    for file in NAMED.findall(prose(page)):
        assert (ROOT / file).exists() or file in made, f"{page.name}: {file}"


def test_links_of_the_reference_lead_somewhere(made: dict[str, str]) -> None:
    for path, text in made.items():
        if path.endswith(".md"):
            assert not faults(ROOT / path, text, made)


@pytest.mark.parametrize(
    "link", ["nowhere.md", "index.md#nothing", "reference/columns.md#row", "../experiments"]
)
def test_a_dead_link_is_found(link: str, made: dict[str, str]) -> None:
    assert faults(DOCS / "index.md", f"[x]({link})", made)


def test_the_table_of_contents_has_every_page(made: dict[str, str]) -> None:
    def listed(nav: object) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        values = nav.values() if isinstance(nav, dict) else nav
        return [page for one in values for page in listed(one)]  # type: ignore[union-attr]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    written = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    generated_pages = {path.removeprefix("docs/") for path in made if path.endswith(".md")}
    assert sorted(listed(nav)) == sorted(written | generated_pages)


def test_the_readme_is_short_and_in_order() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    parts = ["# ld3_dist", "![", "## Three ways in", "## What it reaches", "## Read on"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    ways = text[places[2] : places[3]]
    for block in re.findall(r"^```\w+\n(.*?)^```", ways, re.M | re.S):
        assert len(block.splitlines()) <= 10
