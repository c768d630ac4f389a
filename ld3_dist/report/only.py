"""Rows of results by values of their columns, as `--where model=digits,fashion` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..core.errors import InputError, unknown
from ..store.frames import column, is_scalar, where
from .formats import missing

NONE = "none"
"""Stands for a missing value."""

SHOWN = 20
"""Values that a message lists, at most."""


def only(results: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows that meet all conditions.

    Args:
        conditions: each COLUMN=VALUE or COLUMN=VALUE,VALUE…. Numbers are compared as numbers, true
            and false as such, and `none` stands for a missing value.

    Raises InputError for a condition of another form, a column that is not there, and a value that
    no row has.
    """
    frame = results
    for condition in conditions:
        name, sign, listed = condition.partition("=")
        asked = [value.strip() for value in listed.split(",") if value.strip()]
        if not sign or not name.strip() or not asked:
            raise InputError(f"--where {condition}: give COLUMN=VALUE, such as model=digits")
        frame = _met(frame, name.strip(), asked)
    return frame


def _met(frame: pd.DataFrame, name: str, asked: list[str]) -> pd.DataFrame:
    """The rows whose value in a column is one of those asked for."""
    known = [str(one) for one in frame.columns if is_scalar(frame, str(one))]
    if name not in known:
        raise unknown("column in --where:", name, known)
    texts = [_text(value) for value in column(frame, name)]
    there, wanted = list(dict.fromkeys(texts)), {_text(value): value for value in asked}
    for text, value in wanted.items():
        if text not in there:
            listed = ", ".join(there[:SHOWN]) + ", …" * (len(there) > SHOWN)
            raise InputError(f"--where {name}={value}: no row has it; there are {listed}")
    return where(frame, [text in wanted for text in texts])


def _text(value: Any) -> str:
    """One text for all ways to write a value."""
    if missing(value):
        return NONE
    text = str(value).strip()
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text.lower() if text.lower() in ("true", "false", NONE) else text
