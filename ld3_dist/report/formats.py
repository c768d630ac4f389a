"""Numbers and names as a reader sees them: three digits, and a dash for what was not measured."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import pandas as pd

DASH = "–"


def missing(value: Any) -> bool:
    """Tell if a single value is null in any of pandas' ways."""
    return value is None or bool(pd.isna(value))


def number(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where that stays short."""
    if missing(value):
        return DASH
    value = float(value)
    if value == 0:
        return "0"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    power = math.floor(math.log10(abs(value)))
    if not -5 <= power < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - power, 0)}f}"


def ratio(value: Any) -> str:
    """A factor with three digits and a multiplication sign."""
    return DASH if missing(value) else f"{number(value)}×"


def setting(name: str, value: Any) -> str:
    """The words that a setting adds to the name of a kind of schedule.

    A text is itself, a number has the name of its setting before it, True is that name, and False
    and a missing value add nothing.
    """
    if missing(value):
        return ""
    if pd.api.types.is_bool(value):
        return name if value else ""
    return value if isinstance(value, str) else f"{name} {value:g}"


def kinds(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The kind of schedule of each row, by those of its settings that say something."""
    parts = [[setting(name, value) for value in frame[name]] for name in names]
    return [", ".join(filter(None, said)) for said in zip(*parts, strict=True)]


def counted(count: int, noun: str) -> str:
    """'1 cell', '4 cells'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def visible(text: str) -> str:
    """A name or message on one line, whatever is in it.

    Control characters, line breaks, marks that change the direction of writing and lone surrogates
    become their escapes (`\\x1b`, `\\n`): they would move a terminal's cursor, split a table's row
    or end the writing of a file.
    """
    return "".join(_shown(c) for c in text)


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    if not hidden or character in "\u200c\u200d":  # scripts and emoji need these two joiners
        return character
    return character.encode("unicode_escape").decode("ascii")
