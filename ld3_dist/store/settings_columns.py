"""The columns that show settings: those of axes, and columns for settings in the rows' JSON alone.

    learn.NAME      a setting of a user's own procedure for which rows have no column
    settings.NAME   any other setting in which rows of one cell differ, and that no column shows

The settings of two members of a trial differ in seed and start alone, which have columns. So the
JSON of each trial is read once, not that of each row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from .columns import LEARNING, has_column
from .frames import column

SHOWN = {
    "seed",
    "seeds",
    "start",
    "starts",
    "distance",
    "pairs.train",
    "pairs.valid",
    "teacher.solver",
    "teacher.nfe",
    "teacher.start",
    "guidance",
}
"""Settings that columns of their own show, or that rows of one trial share."""

AXES = {
    "pairs.train": "train_pairs",
    "teacher.solver": "teacher_solver",
    "teacher.nfe": "teacher_nfe",
    "teacher.start": "teacher_start",
    **{name: name for name in ("start", "distance", "guidance", "procedure")},
}
"""Columns of axes that are no settings of learning."""

_MEMBER = r'"(seed|start)": ("(\\.|[^"\\])*"|-?[0-9]+)(, )?'


def axis_column(axis: str) -> str:
    """The column of `load_results` that holds the values of an axis of a search."""
    return AXES.get(axis, axis if axis in LEARNING else f"learn.{axis}")


def with_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column for each setting that no other column shows."""
    given = frame["settings"].notna().to_numpy(bool)
    if not given.any():
        return frame
    texts = column(frame, "settings").dropna()
    plain = texts.astype("str").str.replace(_MEMBER, "", regex=True)
    codes, _ = pd.factorize(plain)
    _, first = np.unique(codes, return_index=True)
    settings = [_settings(texts.iloc[index]) for index in first]
    names = {name: None for found in settings for name in found}
    own = sorted(name for name in names if name.startswith("learn."))
    cells = column(frame, "cell").to_numpy()[given]
    own += [
        name
        for name in sorted(names.keys() - {*own})
        if _varies(codes, [_text(found.get(name)) for found in settings], cells)
    ]
    added = {}
    for name in own:
        values = np.empty(len(settings), dtype=object)
        values[:] = [found.get(name) for found in settings]
        filled = np.full(len(frame), None, dtype=object)
        filled[given] = values[codes]
        title = name if name.startswith("learn.") else f"settings.{name}"
        added[title] = pd.Series(filled, index=frame.index).infer_objects()
    return frame.assign(**added)


def _settings(text: str) -> dict[str, Any]:
    """Settings by their full names that no column shows."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    learn = found.pop("learn", None)
    flat = {name: value for name, value in _flat(found) if name not in SHOWN}
    for name, value in learn.items() if isinstance(learn, dict) else ():
        if name != "seed" and not has_column(name, value):
            flat[f"learn.{name}"] = value
    return flat


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _varies(codes: np.ndarray, values: list[str], cells: np.ndarray) -> bool:
    """True if rows of one cell have different values."""
    if len({*values}) < 2:
        return False
    found = pd.DataFrame({"cell": cells, "value": np.array(values, dtype=object)[codes]})
    return bool((found.drop_duplicates()["cell"].value_counts() > 1).any())
