"""The summary as Markdown: summary.md, and the short table of a README."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from ..store.frames import records
from .ablation import ABLATION_NOTE, ablation_texts
from .columns import Place, shown
from .formats import visible
from .headline import headline
from .summary import summary_table

_MARKS = re.compile(r"([\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_]))")
"""What Markdown may read as markup. An underscore inside a word is none."""


def summary_markdown(frame: pd.DataFrame, evaluations: pd.DataFrame | None = None) -> str:
    """The headline and the summary of results as Markdown; arguments as `summary_table`."""
    return table_markdown(summary_table(frame, evaluations))


def table_markdown(table: pd.DataFrame) -> str:
    """The headline and the table of a summary as Markdown."""
    text = escaped(headline(table)) + "\n"
    return text if table.empty else f"{text}\n{rows_markdown(table, 'markdown')}"


def readme_markdown(table: pd.DataFrame) -> str:
    """The short table of a summary for a README: each cell's best grid and what was learned."""
    return rows_markdown(table, "readme")


def rows_markdown(table: pd.DataFrame, place: Place) -> str:
    """The table of a summary alone, with the columns that `place` shows."""
    columns = shown(table, place)
    lines = [
        _line([escaped(column.heading) for column in columns]),
        _line(["---" if column.words else "---:" for column in columns]),
        *(_line([escaped(column.text(row)) for column in columns]) for row in records(table)),
    ]
    return "\n".join(lines) + "\n"


def ablation_markdown(table: pd.DataFrame) -> str:
    """The table of an ablation as Markdown, with a line before it; empty without one."""
    if table.empty:
        return ""
    heads, rows = ablation_texts(table)
    lines = [_line([escaped(head) for head in heads]), _line(["---"] * len(heads))]
    lines += [_line([escaped(text) for text in row]) for row in rows]
    return f"\n## Ablation\n\n{escaped(ABLATION_NOTE)}\n\n" + "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text on one line in which Markdown finds no markup."""
    return _MARKS.sub(r"\\\1", visible(text))


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"
