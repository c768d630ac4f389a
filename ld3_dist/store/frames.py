"""Selections from a pandas frame whose type is known.

A selection from a frame is a union of types to pandas' own annotations. These functions name the
one that it is, once, so that the modules that use them are type-checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """One column."""
    return cast(pd.Series, frame[name])


def numbers(frame: pd.DataFrame, name: str) -> pd.Series:
    """One column as float64; NaN where nothing was measured."""
    return cast(pd.Series, column(frame, name).astype("Float64").astype("float64"))


def where(frame: pd.DataFrame, mask: Any) -> pd.DataFrame:
    """The rows where a mask holds; a null in the mask counts as false."""
    return cast(pd.DataFrame, frame[pd.Series(mask, index=frame.index).fillna(False).astype(bool)])


def is_scalar(frame: pd.DataFrame, name: str) -> bool:
    """True for a column of single values, not of lists."""
    values = column(frame, name).dropna()
    return not len(values) or np.ndim(values.iloc[0]) == 0


def of_kind(frame: pd.DataFrame, kind: str, status: str | None = None) -> pd.DataFrame:
    """The rows of one kind ("learned" or "baseline") and, if given, one status."""
    mask = column(frame, "kind") == kind
    return where(frame, mask if status is None else mask & (column(frame, "status") == status))


def best_only(frame: pd.DataFrame) -> pd.DataFrame:
    """The best learned row of each cell and distance."""
    return where(frame, column(frame, "best"))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Every row as a dict: column name -> value, in Python's own types.

    Column by column, which takes a tenth of the time of pandas' own `to_dict` on a few rows of a
    wide frame.
    """
    if not len(frame):
        return []
    names = [str(name) for name in frame.columns]
    columns = [column.tolist() for _, column in frame.items()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


class Row(Mapping[str, Any]):
    """One row of a frame, as a dict of `records` would hold it; a column is read when it is used.

    Args:
        at: its position among the rows.
    """

    def __init__(self, frame: pd.DataFrame, at: int) -> None:
        self.frame, self.at = frame, at

    def __getitem__(self, name: str) -> Any:
        if name not in self.frame.columns:
            raise KeyError(name)
        return column(self.frame, name).iloc[self.at : self.at + 1].tolist()[0]

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, self.frame.columns))

    def __len__(self) -> int:
        return len(self.frame.columns)


def groups(
    frame: pd.DataFrame, by: str | Sequence[str], sort: bool = True, nulls: bool = False
) -> list[tuple[Any, pd.DataFrame]]:
    """(value, rows) of each different value of a column; of several columns the value is a tuple.

    Args:
        sort: in the order of the values, else in the order of the rows.
        nulls: also the rows whose value is null, last.
    """
    keys = by if isinstance(by, str) else list(by)
    return [(value, rows) for value, rows in frame.groupby(keys, sort=sort, dropna=not nulls)]


def distinct(frame: pd.DataFrame, name: str) -> list[str]:
    """The different values of a column as text, sorted, without nulls."""
    return sorted({str(value) for value in column(frame, name).dropna()})


def varies(frame: pd.DataFrame, name: str) -> bool:
    """Tell if a column has more than one value; null counts as a value."""
    return int(column(frame, name).nunique(dropna=False)) > 1


def count(mask: Any) -> int:
    """Count where a mask holds; a null does not."""
    return int(pd.Series(mask).fillna(False).astype(bool).sum())
