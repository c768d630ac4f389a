"""The scores of a sweep: their columns, what they are called, and which end is the better one."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ..metrics.judges import judges
from ..store.frames import column
from .columns import METRIC, metric_names


@dataclass(frozen=True)
class Score:
    """A column of the results that is compared. lower: is a lower value the better one?"""

    name: str
    label: str
    lower: bool = True


LOSSES = (
    Score("eval_loss", "fresh loss"),
    Score("valid_loss", "held-out loss"),
    Score("eval_loss_median", "median fresh loss"),
    Score("eval_loss_iqm", "interquartile fresh loss"),
)
SCORES = (
    *LOSSES,
    Score("fid", "Fréchet distance"),
    Score("kid", "kernel distance"),
    Score("inception_score", "Inception score", lower=False),
    Score("precision", "precision", lower=False),
    Score("recall", "recall", lower=False),
    Score("density", "density", lower=False),
    Score("coverage", "coverage", lower=False),
)
HIGHER = ("authenticity", "modes.recall")
"""Metrics beyond the built-in ones that are better where they are higher, as every judge's is."""

NEITHER = ("tail_99", "tail_999")
"""Metrics that are best at 1."""


def measured(results: pd.DataFrame) -> list[Score]:
    """The scores that some row has. Of a user's metric the lower value counts as better."""
    found = [score for score in SCORES if _any(results, score.name)]
    for name in metric_names(results):
        label = name.removeprefix(METRIC)
        if label not in NEITHER and _numeric(results, name):
            found.append(Score(name, label, lower=label not in (*HIGHER, *judges)))
    return found


def label_of(name: str) -> str:
    """The name of a score for readers; "loss" is the one on fresh samples."""
    known = {score.name: score.label for score in SCORES} | {"loss": LOSSES[0].label}
    return known.get(name, name.removeprefix(METRIC))


def _any(frame: pd.DataFrame, name: str) -> bool:
    return name in frame and bool(column(frame, name).notna().any())


def _numeric(frame: pd.DataFrame, name: str) -> bool:
    """Tell if a user's metric has numbers alone."""
    values = column(frame, name).dropna()
    return len(values) > 0 and all(isinstance(value, int | float) for value in values)
