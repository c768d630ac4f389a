"""The results of sweeps as one pandas frame: rows, their evaluations, and derived columns.

source          the folder or URL that a row was read from
learn.NAME      a setting of a user's own procedure for which rows have no column
settings.NAME   any other setting in which rows of one cell differ, and that no column shows
best_baseline   the smallest valid_loss of the hand-made grids that the row compares with
gain            best_baseline / valid_loss; above 1 means better than every hand-made grid
eval_gain       the same for eval_loss, which is measured on fresh pairs; with an interval, and for
                medians and interquartile means, as `gains` says
best            true for the learned row with the smallest valid_loss (status ok) among those that
                compare

Held-out losses compare between rows that agree in COMPARABLE. Losses on fresh pairs are against the
experiment's own teacher and in its own distance for every row, so that all rows of a cell compare
if they were evaluated with the same settings. A hand-made grid is evaluated once, and every row of
a cell with the same grid has the result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..core.user_code import label
from .asked import Asked, read_asked
from .frames import column, of_kind, where
from .gains import Losses, share_between_rows, with_fresh_gains
from .lineage import own_distance
from .opening import Place, open_places
from .settings_columns import with_settings
from .storage import Storage
from .tables import read_table
from .views import tidied

ORDER = ["cell", "kind", "round", "trial", "seed", "start", "key"]
COMPARABLE = ["cell", "distance", "teacher", "valid_pairs"]
"""Rows that agree in these have held-out losses that can be compared."""


def load_results(
    *places: Place | Sequence[Place], all: bool = False, tidy: bool = False
) -> pd.DataFrame:
    """All learned schedules and baselines of one or more sweeps, one row each, in a fixed order.

    It has the columns of the tables `rows` and `evaluations`, and those at the top of this
    file. If both tables have a column, such as host or seconds, the evaluation's ends in _eval.
    A row that several folders hold is there once, preferably from one where it did not fail, then
    from one that evaluated it. Files that cannot be read are left out with a warning, and
    `frame.attrs["unreadable"]` names them.

    Args:
        places: output folders of sweeps, paths or URLs, one by one or in a list.
        all: also the rows that the folder's current experiment does not ask for any more.
        tidy: one number per row, in the columns `metric` and `value` (and `low` and `high`, where
            there is an interval).

    Raises InputError for a folder that is missing, holds no sweep or is given twice.

    >>> import ld3_dist as ld3
    >>> try:
    ...     frame = ld3.load_results("runs/quickstart")
    ...     best = frame[frame["best"]][["cell", "start", "valid_loss", "gain"]]
    ... except ld3.InputError as error:
    ...     print(error)
    /...runs/quickstart: no such folder; give the output folder of a sweep
    """
    storages = open_places(places)
    loaded = [_load(storage, all) for storage in storages]
    frames = [one.frame for one in loaded]
    frame = frames[0]
    if len(frames) > 1:
        frame = pd.concat([known for known in frames if len(known)] or frames)
        frame = frame.assign(_failed=frame["status"] == "failed", _bare=frame["eval_loss"].isna())
        frame = frame.sort_values(["_failed", "_bare"], kind="stable")
        frame = frame.drop(columns=["_failed", "_bare"])
    frame = frame.drop_duplicates("key")
    frame = frame.iloc[_order(frame)].reset_index(drop=True)
    measured = [name for name in frame.columns if name in loaded[0].measured]
    frame = _derive(with_settings(share_between_rows(frame, measured)), storages)
    frame.attrs = {"unreadable": [name for one in loaded for name in one.unreadable]}
    return tidied(frame) if tidy else frame


def comparable(frame: pd.DataFrame, row: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a frame whose held-out losses can be compared with that of `row`."""
    agrees = [column(frame, name) == row[name] for name in COMPARABLE]
    return where(frame, np.logical_and.reduce([mask.fillna(False) for mask in agrees]))


def own_first(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> pd.DataFrame:
    """Rows by their held-out losses; those that the experiment's own do not compare with come last.

    First are rows in its own distance from its own teacher. Losses of another distance, teacher or
    number of held-out pairs say nothing about which of two schedules is better.
    """
    settings = experiment.get("settings")
    teacher = settings.get("teacher") if isinstance(settings, dict) else None
    own: dict[str, Any] = {"distance": own_distance(experiment)}
    for name, value in teacher.items() if isinstance(teacher, dict) else ():
        own[f"teacher_{name}"] = label(value) if isinstance(value, str) else value
    foreign = [column(rows, name) != value for name, value in own.items() if name in rows]
    rank = sum(mask.fillna(True).astype(int) for mask in foreign)
    order = rows.assign(_rank=rank).sort_values(["_rank", *COMPARABLE, "valid_loss"], kind="stable")
    return rows.loc[order.index]


@dataclass(frozen=True)
class _Loaded:
    """The rows of one folder with their evaluations.

    They stand beside the frame: pandas copies a frame's `attrs` with every column that is taken.

    measured: the names of the columns of evaluations.
    unreadable: names of files that could not be read.
    """

    frame: pd.DataFrame
    measured: frozenset[str]
    unreadable: list[str]


def _load(storage: Storage, everything: bool) -> _Loaded:
    asked = read_asked(storage)
    rows, evaluations = read_table(storage, "rows"), read_table(storage, "evaluations")
    unreadable = rows.attrs["unreadable"] + evaluations.attrs["unreadable"]
    rows.attrs, evaluations.attrs = {}, {}
    if not everything:
        rows = asked.rows(rows)
    scores = _chosen(evaluations, asked, everything).drop(columns=["kind", "cell"])
    frame = rows.merge(scores, on="key", how="left", suffixes=("", "_eval"))
    measured = frozenset(map(str, frame.columns.difference(rows.columns)))
    frame.insert(0, "source", storage.url)
    return _Loaded(frame, measured, unreadable)


def read_evaluations(storage: Storage) -> pd.DataFrame:
    """The table `evaluations`, without those whose settings the current experiment has not."""
    table = read_table(storage, "evaluations")
    wanted = read_asked(storage).evaluations
    if wanted is None:
        return table
    asked = where(table, column(table, "evaluation").isin(list(wanted))).reset_index(drop=True)
    asked.attrs = table.attrs
    return asked


def _chosen(evaluations: pd.DataFrame, asked: Asked, everything: bool) -> pd.DataFrame:
    """One evaluation of each key: the one that the current experiment asks for, else any."""
    if asked.evaluations is None:
        return evaluations.drop_duplicates("key")
    wanted = column(evaluations, "evaluation").isin(list(asked.evaluations)).to_numpy(bool)
    if not everything:
        return where(evaluations, wanted).drop_duplicates("key")
    return evaluations.iloc[np.argsort(~wanted, kind="stable")].drop_duplicates("key")


def _order(frame: pd.DataFrame) -> np.ndarray:
    """The positions of the rows in the order of ORDER, null first."""
    names = [name for name in ORDER if name in frame]
    ranks = pd.DataFrame({name: pd.factorize(frame[name], sort=True)[0] for name in names})
    return np.lexsort([ranks[name].to_numpy() for name in reversed(names)])


def _derive(frame: pd.DataFrame, storages: Sequence[Storage]) -> pd.DataFrame:
    baselines = of_kind(frame, "baseline", "ok")
    frame["best_baseline"] = _smallest(frame.loc[:, COMPARABLE], baselines, "valid_loss")
    frame["gain"] = frame["best_baseline"] / frame["valid_loss"]
    frame = with_fresh_gains(frame, losses_in(storages, frame))
    learned = of_kind(frame, "learned", "ok")
    ranked = where(learned, column(learned, "valid_loss").notna())
    ranked = ranked.sort_values(by="valid_loss", kind="stable")
    frame["best"] = frame.index.isin(ranked.drop_duplicates(COMPARABLE).index)
    return frame


def losses_in(
    storages: Sequence[Storage], frame: pd.DataFrame, further: str | None = None
) -> Losses:
    """Read the kept losses of some rows of a frame, in the order of their samples.

    Those of a row are read from the folder in its column `source`.

    Args:
        further: name of another distance that was measured, as in "distance.l1"; rows without it
            are left out. By default the experiment's own.
    """

    def losses(keys: Collection[str]) -> dict[str, np.ndarray]:
        wanted = where(frame, frame["key"].isin(list(keys)))
        found: dict[str, np.ndarray] = {}
        for storage in storages:
            own = where(wanted, wanted["source"] == storage.url).loc[:, ["key", "evaluation"]]
            table = read_table(storage, "losses").merge(own, on=["key", "evaluation"])
            table = table.sort_values(["repeat", "start"], kind="stable")
            if further is not None:
                values = [dict(kept or ()).get(further) for kept in table["judged"]]
                table = table.assign(losses=values).dropna(subset=["losses"])
            groups = table.groupby("key", sort=False)["losses"]
            found |= {str(key): np.concatenate(list(sets)) for key, sets in groups}
        return found

    return losses


def _smallest(groups: pd.DataFrame, baselines: pd.DataFrame, column: str) -> np.ndarray:
    """The smallest value of a column among the hand-made grids in the group of each row, or NaN."""
    codes = _groups(groups)
    smallest = np.full(codes.max(initial=-1) + 1, np.inf)
    values = baselines[column].to_numpy(float)
    known = ~np.isnan(values)
    np.minimum.at(smallest, codes[baselines.index.to_numpy()][known], values[known])
    found = smallest[codes]
    return np.where(np.isinf(found), np.nan, found)


def _groups(columns: pd.DataFrame) -> np.ndarray:
    """The number of each row's group: rows that agree in all columns; null is a value, too."""
    ranks = [pd.factorize(columns[name])[0] for name in columns]
    return np.unique(np.stack(ranks, 1), axis=0, return_inverse=True)[1].reshape(-1)
