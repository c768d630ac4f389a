"""The pages that people read: their blocks of code, their links, their commands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
"""The pages whose code is run."""

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("experiments/**/*.md")])
"""The pages whose links are followed."""

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```[ \t]*$", re.M | re.S)
MARK = re.compile(r"<!-- *(.*?) *-->\s*\Z")


@dataclass(frozen=True)
class Fenced:
    """A block of code of a page, with the comment above it ("" without one)."""

    page: Path
    line: int
    language: str
    code: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fenced(page: Path) -> list[Fenced]:
    """Every fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        mark = MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        code = re.sub(rf"^{match[1]}", "", match[3], flags=re.M)
        found.append(Fenced(page, line, match[2], code, mark[1] if mark else ""))
    return found


def prose(page: Path) -> str:
    """The text of a page without code blocks and comments."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"<!--.*?-->", "", text, flags=re.S)


def lines_of(code: str) -> list[list[str]]:
    """The commands of a block as words; a line may end in a backslash."""
    whole = code.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in whole]
    return [line for line in words if line]


@cache
def commands() -> dict[str, Any]:
    """The commands of `ld3-dist` by name, as the parser knows them."""
    from ld3_dist.cli.app import app

    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def fault_of(words: list[str]) -> str:
    """The fault of a command line of `ld3-dist`, as its parser has it; "" for none."""
    known = commands()
    if len(words) < 2 or words[1] not in known:
        return f"{' '.join(words)}: no command of ld3-dist"
    try:
        known[words[1]].make_context(words[1], list(words[2:]))
    except Exception as error:  # noqa: BLE001  typer has parsers of its own, with their own errors
        return f"{' '.join(words)}: {getattr(error, 'message', '') or error!r}"
    return ""


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+?)\s*$", FENCE.sub("", text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found
