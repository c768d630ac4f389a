"""The results of a sweep as one pandas frame: rows, their evaluations, and four derived columns.

learn.NAME      a setting of a user's own procedure for which rows have no column
best_baseline   the smallest valid_loss of the cell's hand-made grids, in the row's distance
gain            best_baseline / valid_loss; above 1 means better than every hand-made grid
eval_gain       the same for eval_loss, which is measured on fresh pairs; with an interval, and for
                medians and interquartile means, as `gains` says
best            true for the learned row with the cell's smallest valid_loss (status ok); where a
                cell learned in several distances, one row for each of them

Losses in two distances have different scales and are never compared. eval_loss is in the
experiment's own distance for every row. A hand-made grid is evaluated once, and its rows in all
distances have the result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import InputError
from .columns import has_column
from .gains import Losses, share_between_rows, with_fresh_gains
from .lineage import current
from .opening import open_storage
from .storage import Storage
from .tables import read_table

ORDER = ["cell", "kind", "round", "trial", "seed", "start", "key"]
COMPARABLE = ["cell", "distance"]
"""Rows that agree in these have losses that can be compared."""


def load_results(place: str | os.PathLike[str] | Storage) -> pd.DataFrame:
    """All learned schedules and baselines of a sweep, one row each, in a fixed order.

    It has the columns of the tables `rows` and `evaluations`, and those at the top of this
    file. If both tables have a column, such as host or seconds, the evaluation's ends in _eval.
    Files that cannot be read are left out with a warning, and `frame.attrs["unreadable"]` names
    them.

    Args:
        place: output folder of a sweep, a path or a URL.

    Raises InputError for a folder that is missing or holds no sweep.

    >>> import ld3_dist as ld3
    >>> try:
    ...     frame = ld3.load_results("runs/quickstart")
    ...     best = frame[frame["best"]][["cell", "start", "valid_loss", "gain"]]
    ... except ld3.InputError as error:
    ...     print(error)
    /...runs/quickstart: no such folder; give the output folder of a sweep
    """
    storage = open_storage(place)
    if not storage.exists():
        raise InputError(f"{storage.url}: no such folder; give the output folder of a sweep")
    if not storage.exists("rows") and not storage.exists("experiment.json"):
        raise InputError(
            f"{storage.url}: holds no results (no rows/); give the output folder of a sweep"
        )
    rows = read_table(storage, "rows")
    evaluations = read_evaluations(storage)
    frame = _derive(_with_own_settings(_join(rows, evaluations)), _losses_in(storage))
    frame.attrs["unreadable"] = rows.attrs["unreadable"] + evaluations.attrs["unreadable"]
    return frame


def read_evaluations(storage: Storage) -> pd.DataFrame:
    """The table `evaluations`, without those whose settings the current experiment has not."""
    table = read_table(storage, "evaluations")
    wanted = current(storage).get("evaluation")
    if not isinstance(wanted, list):
        return table
    asked = table.query("evaluation in @wanted").reset_index(drop=True)
    asked.attrs = table.attrs
    return asked


def _join(rows: pd.DataFrame, evaluations: pd.DataFrame) -> pd.DataFrame:
    """Rows with their evaluations, joined on the key.

    A key that stands there twice counts once: the trial ran twice, with the same result.
    """
    rows = rows.sort_values(ORDER, kind="stable", na_position="first").drop_duplicates("key")
    scores = evaluations.drop_duplicates("key").drop(columns=["kind", "cell"])
    frame = rows.merge(scores, on="key", how="left", suffixes=("", "_eval")).reset_index(drop=True)
    return share_between_rows(frame, [name for name in frame.columns if name not in rows.columns])


def _losses_in(storage: Storage) -> Losses:
    """Read the losses that are kept of some rows, in order of their sets."""

    def losses(keys: Collection[str]) -> dict[str, np.ndarray]:
        table = read_table(storage, "losses").sort_values(by="repeat", kind="stable")
        groups = table.query("key in @keys").groupby("key", sort=False)["losses"]
        return {str(key): np.concatenate(list(sets)) for key, sets in groups}

    return losses


def _with_own_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """A column `learn.NAME` for each setting of a user's own procedure that has no other."""
    found: dict[str, dict[int, Any]] = {}
    learned = frame.loc[frame["kind"] == "learned", "settings"].dropna()
    for index, text in learned.items():
        for name, value in json.loads(text).get("learn", {}).items():
            if name != "seed" and not has_column(name, value):
                found.setdefault(f"learn.{name}", {})[index] = value
    own = {name: pd.Series(values) for name, values in sorted(found.items())}
    return frame.assign(**{name: values.reindex(frame.index) for name, values in own.items()})


def _derive(frame: pd.DataFrame, losses: Losses) -> pd.DataFrame:
    frame["best_baseline"] = _best_baseline(frame, "valid_loss")
    frame["gain"] = frame["best_baseline"] / frame["valid_loss"]
    frame = with_fresh_gains(frame, losses)
    measured = frame.query("status == 'ok' and kind == 'learned' and valid_loss.notna()")
    ranked = measured.sort_values(by="valid_loss", kind="stable")
    frame["best"] = frame.index.isin(ranked.drop_duplicates(COMPARABLE).index)
    return frame


def _best_baseline(frame: pd.DataFrame, column: str) -> np.ndarray:
    """The smallest value of a column among the hand-made grids that a row compares with, or NaN."""
    baselines = frame.query("status == 'ok' and kind == 'baseline'")
    groups = baselines.fillna({"distance": ""}).groupby(COMPARABLE)
    smallest = {pair: group[column].min() for pair, group in groups}
    pairs = zip(*(frame[name].fillna("") for name in COMPARABLE), strict=True)
    return np.array([smallest.get(pair, np.nan) for pair in pairs], dtype=np.float64)
