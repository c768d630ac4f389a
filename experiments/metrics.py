"""Does a lower distance to the teacher mean a better everything? From the sweep of metrics.yaml.

    python experiments/metrics.py runs/metrics [--output results/metrics]

In every cell (model, solver, NFE) the schedules are ranked by their loss on fresh samples, and by
each score of the same samples in two ways: the better one first ("better"), or the one that is
nearer to the teacher's own score ("teacher"). Spearman's correlation of the two ranks is 1 where
the lower loss always has the better score. It is taken over all schedules, whose losses are up to
hundreds of times apart, and over the learned ones alone, among which one has to choose.

    metrics.csv    a row per cell, group of schedules, score and way of ranking
    summary.csv    means over cells with 95 % intervals (Student's t over cells, of Fisher's z)
    metrics.png    the means
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import ld3_dist as ld3
from ld3_dist.metrics.paired import interval_over_sets
from ld3_dist.store.opening import open_storage
from ld3_dist.store.results import read_evaluations

SCORES = {
    "fid": ("Fréchet distance", -1), "kid": ("kernel distance", -1),
    "inception_score": ("score of classes", 1), "precision": ("precision", 1),
    "recall": ("recall", 1), "density": ("density", 1), "coverage": ("coverage", 1),
    "metric.authenticity": ("authenticity", 1),
}  # fmt: skip
"""Column: (name in the figure, 1 if more is better)."""

LARGEST = 0.999
"""Correlations beyond are taken for this: artanh(1) is infinite."""

COLUMNS = ["model", "solver", "nfe", "group", "score", "ranked", "schedules", "correlation"]


def table_of(place: str) -> pd.DataFrame:
    """A row per cell, group, score and way of ranking."""
    frame = ld3.load_results(place)
    frame = frame[frame["eval_loss"].notna()]
    teachers = read_evaluations(open_storage(place)).query("kind == 'teacher'")
    rows = list[list]()
    for key, cell in frame.groupby(["model", "solver", "nfe"], sort=False):
        own = teachers[teachers["key"] == f"teacher:{cell['teacher'].iloc[0]}"].iloc[0]
        for group, part in (("all", cell), ("learned", cell[cell["kind"] == "learned"])):
            rows += [[*key, group, *found] for found in correlations(part, own)]
    return pd.DataFrame(rows, columns=COLUMNS)


def correlations(part: pd.DataFrame, teacher: pd.Series) -> Iterator[list]:
    """(score, way of ranking, schedules, correlation) of the schedules of a cell."""
    for score, (_, sign) in SCORES.items():
        if score not in part or part[score].nunique() < 3:
            continue  # not measured, or the same for all
        values = part[score].astype(float)
        worse = {"better": -sign * values, "teacher": (values - float(teacher[score])).abs()}
        for ranked, column in worse.items():
            found = part["eval_loss"].astype(float).corr(column, method="spearman")
            yield [score, ranked, len(part), found]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row per model, group, score and way of ranking: the mean over cells and its interval.

    Both are taken of Fisher's z = artanh(r), whose spread hardly depends on r, and turned back.
    """
    rows = []
    for key, part in table.groupby(["model", "group", "score", "ranked"], sort=False):
        found = interval_over_sets(np.arctanh(part["correlation"].clip(-LARGEST, LARGEST)))
        rows.append([*key, len(part), *np.tanh([found.value, found.low, found.high])])
    names = ["model", "group", "score", "ranked", "cells", "correlation", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def draw(found: pd.DataFrame, file: Path) -> None:
    """Four panels: all and learned schedules, ranked in two ways; a colour per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    titles = {"better": "better score", "teacher": "score nearer to the teacher's"}
    models, names = list(dict.fromkeys(found["model"])), list(dict.fromkeys(found["score"]))
    for row, group in zip(panels, ("all", "learned"), strict=True):
        row[0].set_ylabel(f"{group} schedules")
        for axes, (ranked, title) in zip(row, titles.items(), strict=True):
            for number, model in enumerate(models):
                part = found[(found["group"] == group) & (found["ranked"] == ranked)]
                part = part[part["model"] == model].set_index("score")
                at = [names.index(score) + 0.25 * number - 0.12 for score in part.index]
                error = [part["correlation"] - part["low"], part["high"] - part["correlation"]]
                axes.errorbar(part["correlation"], at, xerr=error, fmt="o", ms=4, label=model)
            axes.axvline(0, color="0.7", lw=1)
            axes.set_xlim(-1.05, 1.05)
            if group == "all":
                axes.set_title(f"does a lower loss have the {title}?", fontsize=9)
            axes.set_yticks(range(len(names)), [SCORES[name][0] for name in names], fontsize=8)
    panels[0, 0].invert_yaxis()
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    for axes in panels[1]:
        axes.set_xlabel("rank correlation within a cell (1: always)", fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep")
    parser.add_argument("--output", type=Path, default=Path("results/metrics"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    table = table_of(given.sweep)
    table.to_csv(given.output / "metrics.csv", index=False, float_format="%.4g")
    found = summary(table)
    found.to_csv(given.output / "summary.csv", index=False, float_format="%.4g")
    draw(found, given.output / "metrics.png")


if __name__ == "__main__":
    main()
