"""Tidy views of results: one number per row, epoch by epoch, and sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd

from .asked import EVERYTHING, read_asked
from .columns import LEARNING
from .frames import column, where
from .opening import Place, open_places
from .tables import read_table

METRICS = (
    "valid_loss",
    "train_loss",
    "start_loss",
    "gain",
    "eval_loss",
    "eval_loss_median",
    "eval_loss_iqm",
    "eval_gain",
    "eval_gain_median",
    "eval_gain_iqm",
    "eval_p_improvement",
    "fid",
    "kid",
    "inception_score",
    "precision",
    "recall",
    "density",
    "coverage",
    "noise_moved",
    "epochs_run",
    "network_evals",
    "device_seconds",
    "peak_memory",
    "seconds",
)
"""Columns of results that are measured, in the order of the tidy view."""

NAMES = (
    "source",
    "key",
    "experiment",
    "evaluation",
    "cell",
    "kind",
    "status",
    "model",
    "conditioning",
    "guidance",
    "solver",
    "nfe",
    "procedure",
    "start",
    "gamma",
    "distance",
    "teacher",
    "train_pairs",
    "valid_pairs",
    "round",
    "trial",
    "seed",
    "best",
    "decided",
)
"""Columns of results that say which schedule a number belongs to."""

CURVES = ("source", "key", "cell", "solver", "nfe", "start", "gamma", "trial", "seed")


def metrics_in(frame: pd.DataFrame) -> list[str]:
    """The columns of results that are measured, a user's own metrics included."""
    own = sorted(name for name in frame.columns if name.startswith("metric."))
    return [name for name in (*METRICS, *own) if name in frame]


def tidied(frame: pd.DataFrame) -> pd.DataFrame:
    """One number per row; what was not measured has none.

    Every setting that has more than one value in the frame stands beside it, as do the names of
    schedule and sweep.
    """
    measured = metrics_in(frame)
    bounds = [f"{name}_{end}" for name in measured for end in ("low", "high")]
    names = [name for name in NAMES if name in frame]
    others = frame.columns.difference([*names, *measured, *bounds], sort=False)
    names += [name for name in others if _is_setting(frame, name)]
    parts = []
    for name in measured:
        values = cast(pd.Series, pd.to_numeric(column(frame, name), errors="coerce"))
        values = values.astype("float64")
        there = values.notna().to_numpy(bool)
        if not there.any():
            continue
        part = frame.loc[there, names]
        part = part.assign(metric=name, value=values)
        for end in ("low", "high"):
            bound = f"{name}_{end}"
            part[end] = frame.get(bound, np.nan)
        parts.append(part)
    if not parts:
        return frame.loc[[], names].assign(metric="", value=np.nan, low=np.nan, high=np.nan)
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)


def _is_setting(frame: pd.DataFrame, name: str) -> bool:
    known = name in LEARNING or name in ("radius", "teacher_solver", "teacher_nfe", "teacher_start")
    if not known and not name.startswith(("learn.", "settings.")):
        return False
    return int(column(frame, name).astype("string").nunique()) > 1


def load_curves(*places: Place | Sequence[Place], all: bool = False) -> pd.DataFrame:
    """The losses of every learned schedule, epoch by epoch: one row per schedule and epoch.

    Columns: source, key, cell, solver, nfe, start, gamma, trial, seed, epoch (0 is the start, which
    has no training loss), train_loss, valid_loss.

    Args:
        places: output folders of sweeps, paths or URLs, one by one or in a list.
        all: also the rows that the folder's current experiment does not ask for any more.

    Raises InputError as `load_results` does.

    >>> import ld3_dist as ld3
    >>> try:
    ...     curves = ld3.load_curves("runs/quickstart")
    ...     mean = curves.groupby(["cell", "epoch"])["valid_loss"].mean()
    ... except ld3.InputError as error:
    ...     print(error)
    /...runs/quickstart: no such folder; give the output folder of a sweep
    """
    parts = []
    for storage in open_places(places):
        needed = [*CURVES[1:], "train_curve", "valid_curve"]
        rows = read_table(storage, "rows", [*needed, "kind", "status"])
        if not all:
            rows = read_asked(storage).rows(rows)
        rows = rows[(rows["kind"] == "learned").to_numpy(bool)]
        parts.append(rows.assign(source=storage.url))
    frame = pd.concat(parts)
    order = np.argsort((frame["status"] == "failed").to_numpy(bool), kind="stable")
    frame = frame.iloc[order].drop_duplicates("key").reset_index(drop=True)
    valid, train = (_ragged(column(frame, name)) for name in ("valid_curve", "train_curve"))
    lengths = np.array([len(values) for values in valid], dtype=np.int64)
    index = np.repeat(np.arange(len(frame)), lengths)
    long = frame[list(CURVES)].iloc[index].reset_index(drop=True)
    long["epoch"] = _counted(lengths)
    pairs = zip(train, lengths, strict=True)
    padded = [_last(values, length) for values, length in pairs]
    long["train_loss"] = np.concatenate([np.empty(0), *padded])
    long["valid_loss"] = np.concatenate([np.empty(0), *valid])
    return long


def _ragged(column: pd.Series) -> list[np.ndarray]:
    """Lists of numbers as arrays; null as an empty one."""
    empty = np.empty(0)
    return [empty if v is None or np.ndim(v) == 0 else np.asarray(v, float) for v in column.array]


def _last(values: np.ndarray, length: int) -> np.ndarray:
    """The values, with NaN in front where they are fewer: a training loss begins with epoch 1."""
    missing = max(length - len(values), 0)
    return np.concatenate([np.full(missing, np.nan), values[len(values) - (length - missing) :]])


def _counted(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … for each length, one after the other."""
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.arange(lengths.sum()) - starts


def load_samples(
    *places: Place | Sequence[Place], cell: str | None = None, all: bool = False
) -> pd.DataFrame:
    """The distance to the teacher of every fresh sample: one row per schedule and sample.

    Columns: source, key, evaluation, repeat (the set of samples), index (of the sample: rows with
    the same index started from the same noise), loss.

    Args:
        places: output folders of sweeps, paths or URLs, one by one or in a list.
        cell: only the schedules of this cell.
        all: also evaluations that the folder's current experiment does not ask for any more.

    Raises InputError as `load_results` does.

    >>> import ld3_dist as ld3
    >>> try:
    ...     samples = ld3.load_samples("runs/quickstart")
    ...     wide = samples.pivot_table(index="index", columns="key", values="loss")
    ... except ld3.InputError as error:
    ...     print(error)
    /...runs/quickstart: no such folder; give the output folder of a sweep
    """
    parts = []
    for storage in open_places(places):
        table = read_table(storage, "losses")
        asked = EVERYTHING if all else read_asked(storage)
        if asked.evaluations is not None:
            wanted = table["evaluation"].isin(list(asked.evaluations))
            table = where(table, wanted)
        if cell is not None or asked.trials is not None:
            rows = read_table(storage, "rows", ["key", "cell", "trial", "seed", "start"])
            rows = asked.rows(rows)
            rows = rows if cell is None else where(rows, column(rows, "cell") == cell)
            table = where(table, column(table, "key").isin(list(column(rows, "key"))))
        parts.append(table.assign(source=storage.url))
    identity = ["key", "evaluation", "repeat", "start"]
    table = pd.concat(parts).drop_duplicates(identity).reset_index(drop=True)
    lengths = np.array([len(values) for values in table["losses"].array], dtype=np.int64)
    at = np.repeat(np.arange(len(table)), lengths)
    names = ["source", "key", "evaluation", "repeat"]
    long = table[names].iloc[at].reset_index(drop=True)
    first = table["start"].fillna(0).to_numpy(np.int64)[at]
    long["index"] = first + _counted(lengths)
    losses = np.concatenate([np.empty(0, np.float32), *table["losses"].array])
    long["loss"] = losses.astype(np.float64)
    return long
