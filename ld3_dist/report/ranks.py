"""Mean ranks of the rows of a table across cells, and by how much two must differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ..core.errors import InputError
from ..metrics.paired import average_ranks, critical_difference, friedman
from .crosstab import MORE_IS_BETTER


def blocks(frame: pd.DataFrame, rows: str, value: str) -> pd.DataFrame:
    """Scores [block, row]: a block is everything that rows have in common but for `rows`.

    These are the cells over which ranks are averaged for a critical difference.
    """
    parts = ["model", "conditioning", "guidance", "solver", "nfe"]
    others = [name for name in parts if name != rows]
    names = frame[others].astype("string").fillna("").agg("/".join, axis=1)
    wide = frame.assign(_block=names).pivot_table(
        index="_block", columns=rows, values=value, aggfunc="mean"
    )
    return wide.dropna()


@dataclass(frozen=True)
class Differences:
    """Mean ranks over blocks, and by how much two must differ (Nemenyi, 95 %).

    p_value: of Friedman's test that all rows are equally good.
    """

    names: Sequence[str]
    ranks: Sequence[float]
    critical: float
    p_value: float
    blocks: int


def differences(frame: pd.DataFrame, rows: str, value: str) -> Differences:
    """The mean ranks of the rows of a table across cells. Raises InputError for fewer than two."""
    scores = blocks(frame, rows, value)
    count, kinds = scores.shape
    if kinds < 2 or count < 2:
        raise InputError(
            f"--figure: ranks need two {rows} or more in two cells or more that have them all; "
            f"there are {kinds} in {count}"
        )
    signed = scores.to_numpy(float) * (-1 if value in MORE_IS_BETTER else 1)
    return Differences(
        [str(name) for name in scores.columns],
        [float(rank) for rank in average_ranks(signed)],
        critical_difference(kinds, count),
        float(friedman(signed)) if kinds > 2 else math.nan,
        count,
    )
