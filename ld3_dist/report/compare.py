"""Two sweeps compared: what differs in their settings, and whose best schedules are better.

In each cell that both have, the trial with the best held-out loss of one sweep stands against that
of the other, with all seeds of the best one's start. Losses are on fresh samples:

    paired      sample i began with the same noise in both: the same model, seed, teacher, distance
                and index. The interval is of the ratio over the same samples
    unpaired    losses are kept, but of other samples
    values      no losses are kept: two means without an interval; on held-out pairs where nothing
                was evaluated
    none        the sweeps measure in different distances or spaces, which do not compare: no ratio

A ratio below 1 says that the second sweep is better. Over several cells it is their geometric mean,
with the standard errors of its logarithms added in squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import InputError, unknown
from ..metrics.paired import compare as compare_losses
from ..metrics.resampling import exponential
from ..store.frames import column, records, where
from ..store.lineage import current
from ..store.opening import open_places
from ..store.results import load_results, own_first
from ..store.storage import Storage
from ..store.views import load_samples

SAME_NOISE = ("seed", "teacher", "distance", "loss_space")
"""Settings of an experiment that fresh samples and their losses depend on, besides the model."""

MEASURE = ("distance", "loss_space")
"""Those without which two losses say nothing about each other."""

Z = 1.959963984540054
"""Half the width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Row:
    """The comparison of one group of cells; `ratio` is the second's loss over the first's.

    how: paired, unpaired, values or none; several, if cells of the group differ.
    """

    group: Mapping[str, Any]
    cells: int
    loss_a: float
    loss_b: float
    ratio: float
    low: float
    high: float
    p_improvement: float
    samples: int
    how: str
    why: str = ""


@dataclass(frozen=True)
class SweepComparison:
    """Two sweeps: settings that differ, as (name, first, second), and a row per group."""

    a: str
    b: str
    settings: Sequence[tuple[str, Any, Any]]
    rows: Sequence[Row]
    only_a: Sequence[str]
    only_b: Sequence[str]


def compare_sweeps(a: Any, b: Any, by: Sequence[str] = ("cell",)) -> SweepComparison:
    """Compare two output folders.

    Args:
        by: columns of results; cells that agree in them make one row.

    Raises InputError for folders without a common cell, for the same folder twice and for unknown
    columns.
    """
    storages = open_places([a, b])
    frames = [load_results(storage) for storage in storages]
    for name in by:
        known = [str(n) for n in frames[0].columns.intersection(frames[1].columns)]
        if name not in known:
            raise unknown("column in --by:", name, known)
    about = [current(storage) for storage in storages]
    best = [_best_of_cells(f, a) for f, a in zip(frames, about, strict=True)]
    cells = [name for name in best[0] if name in best[1]]
    if not cells:
        raise InputError(
            f"{storages[0].url} and {storages[1].url} have no cell with learned schedules in "
            f"common: {_listed(best[0])} there, {_listed(best[1])} here"
        )
    settings = [found.get("settings") or {} for found in about]
    samples = [_Samples(storage) for storage in storages]
    parts = [_cell(best[0][cell], best[1][cell], by, samples, settings) for cell in cells]
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for part in parts:
        grouped.setdefault(tuple(str(part.group[name]) for name in by), []).append(part)
    return SweepComparison(
        storages[0].url,
        storages[1].url,
        list(differing(*settings)),
        [together(rows) for rows in grouped.values()],
        [cell for cell in best[0] if cell not in best[1]],
        [cell for cell in best[1] if cell not in best[0]],
    )


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ: full name, first value, second value; None where it is not set."""
    left, right = dict(_flat(a)), dict(_flat(b))
    for name in sorted({*left, *right}):
        if left.get(name) != right.get(name):
            yield name, left.get(name), right.get(name)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _flat(item, f"{name}.{key}" if name else str(key))


def _listed(best: Mapping[str, Any]) -> str:
    names = list(best)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more if names else "none"


def _best_of_cells(
    frame: pd.DataFrame, experiment: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """For each cell, the members of the best trial: all seeds of the best one's start."""
    found = {}
    ok = where(frame, (frame["kind"] == "learned") & (frame["status"] == "ok"))
    leaders = own_first(where(ok, ok["best"]), experiment)
    for leader in records(leaders.drop_duplicates("cell").sort_values("cell")):
        trial = where(ok, (ok["cell"] == leader["cell"]) & (ok["start"] == leader["start"]))
        same = where(trial, trial["trial"] == leader["trial"])
        found[str(leader["cell"])] = records(same) or [leader]
    return found


class _Samples:
    """Losses of single samples of a sweep, read once."""

    def __init__(self, storage: Storage) -> None:
        self.table = load_samples(storage)

    def of(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Losses [samples, seeds] of rows, by (repeat, index); samples that all of them have."""
        keys = [row["key"] for row in rows]
        table = where(self.table, column(self.table, "key").isin(keys))
        wide = table.pivot_table(index=["repeat", "index"], columns="key", values="loss")
        return wide.dropna()


def _cell(
    a: list[dict[str, Any]],
    b: list[dict[str, Any]],
    by: Sequence[str],
    samples: Sequence[_Samples],
    settings: Sequence[Mapping[str, Any]],
) -> Row:
    group = {name: a[0][name] for name in by}
    if apart := [s for s in MEASURE if settings[0].get(s) != settings[1].get(s)]:
        why = f"{', '.join(apart)} differs, so that losses do not compare"
        return replace(_values(group, a, b, why), ratio=math.nan, how="none")
    x, y = samples[0].of(a), samples[1].of(b)
    if not len(x) or not len(y):
        return _values(group, a, b, "no losses of single samples are kept")
    why = _why_unpaired(a[0], b[0], settings)
    shared = x.index.intersection(y.index)
    if not why and len(shared) < 2:
        why = "no sample is in both"
    if not why:
        x, y = x.loc[shared], y.loc[shared]
    first, second = x.to_numpy().T, y.to_numpy().T
    found = compare_losses(second, first, paired=not why)
    return Row(
        group,
        1,
        float(first.mean()),
        float(second.mean()),
        *found.ratio,
        found.p_improvement,
        found.samples,
        "unpaired" if why else "paired",
        why,
    )


def _why_unpaired(
    a: Mapping[str, Any], b: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]
) -> str:
    """The reason why sample i of two sweeps is not the same sample; empty if it is."""
    for name in ("model_hash", "conditioning"):
        if a[name] != b[name]:
            return f"{name} differs"
    changed = [s for s in SAME_NOISE if settings[0].get(s) != settings[1].get(s)]
    return f"{', '.join(changed)} differs" if changed else ""


def _values(
    group: Mapping[str, Any], a: list[dict[str, Any]], b: list[dict[str, Any]], why: str
) -> Row:
    """Two means without an interval."""
    nan, what = math.nan, "fresh samples"
    means = [_mean([row["eval_loss"] for row in rows]) for rows in (a, b)]
    if any(map(math.isnan, means)):
        what = "held-out pairs"
        means = [_mean([row["valid_loss"] for row in rows]) for rows in (a, b)]
    ratio = means[1] / means[0] if means[0] else nan
    return Row(
        group, 1, means[0], means[1], ratio, nan, nan, nan, 0, "values", f"{why}; means of {what}"
    )


def _mean(values: Sequence[Any]) -> float:
    known = [float(v) for v in values if v is not None and not pd.isna(v)]
    return float(np.mean(known)) if known else math.nan


def together(rows: Sequence[Row]) -> Row:
    """Rows of several cells as one."""
    if len(rows) == 1:
        return rows[0]
    logs = np.log([[row.ratio, row.low, row.high] for row in rows])
    half = Z * float(np.sqrt((((logs[:, 2] - logs[:, 1]) / (2 * Z)) ** 2).sum())) / len(rows)
    middle = float(logs[:, 0].mean())
    return Row(
        rows[0].group,
        len(rows),
        float(np.exp(np.mean(np.log([row.loss_a for row in rows])))),
        float(np.exp(np.mean(np.log([row.loss_b for row in rows])))),
        exponential(middle),
        exponential(middle - half),
        exponential(middle + half),
        float(np.mean([row.p_improvement for row in rows])),
        sum(row.samples for row in rows),
        ", ".join(dict.fromkeys(row.how for row in rows)),
        "; ".join(dict.fromkeys(row.why for row in rows if row.why)),
    )
