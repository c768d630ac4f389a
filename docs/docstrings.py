"""Docstrings as Markdown, for the reference: examples become code, lists of fields become lists.

A griffe extension; `mkdocs.yml` names it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELD = re.compile(r"^([a-z_][a-z_0-9]*(?:, [a-z_][a-z_0-9]*)*): (?=\S)")


def as_markdown(text: str) -> str:
    """The docstring with its doctests fenced, and paragraphs of `field: meaning` as lists."""
    return "\n\n".join(map(_block, text.split("\n\n")))


def _block(block: str) -> str:
    lines = block.split("\n")
    if lines[0].startswith(">>>"):
        return "\n".join(["```pycon", *lines, "```"])
    if not FIELD.match(lines[0]):
        return block
    return "\n".join(FIELD.sub(lambda m: f"- `{m[1]}`: ", line) for line in lines)


class Docstrings(griffe.Extension):
    """Rewrites every docstring as griffe reads it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
