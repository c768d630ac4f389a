"""The course of learning (loss by epoch) and the effect of the noise ball (gain against gamma)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...store.frames import column, groups, numbers, of_kind, records, varies, where
from ..formats import missing
from ..summary import best_row
from . import FigureData, Plot
from .cells import baselines, cells, chosen_cells, families, legible
from .quality import plain_log
from .style import BASELINE, LEARNED, MUTED, SHADES, columns_of, label_ends, panels, plain

MOST_CURVES = 40
"""Held-out curves of one panel."""

MOST_GAMMAS = 8
"""Up to here gamma is shown as evenly spaced places; beyond, as a continuous axis."""


def convergence_plot(data: FigureData) -> Plot | None:
    """Held-out loss by epoch, one panel per cell, the best member in bold.

    None where no curve was kept.
    """
    named = [
        (label, rows)
        for label, rows in cells(data.frame)
        if _curve(best_row(rows), "valid_curve") is not None
    ]
    if not named:
        return None
    shown, note = chosen_cells(named)
    figure, axes = panels(len(shown), height=2.5)
    for axis, (label, rows) in zip(axes, shown, strict=True):
        axis.set_title(plain(label))
        _convergence(axis, rows)
    for axis in axes[:: columns_of(len(shown))]:
        axis.set_ylabel("distance to the teacher")
    caption = (
        "Bold: held-out loss of the cell's best member; thin: other members; dotted: the best "
        "member's training loss, inside the noise ball where γ > 0. Blue: the best hand-made "
        f"grid.{note}"
    )
    labels = ", ".join(label for label, _ in shown)
    alt = f"Loss by epoch on a logarithmic axis for {labels}"
    return Plot(data.name("convergence"), "Convergence", caption, alt, figure)


def _convergence(axis: Axes, rows: pd.DataFrame) -> None:
    best = best_row(rows)
    learned = of_kind(rows, "learned")
    kept = records(where(learned, column(learned, "valid_curve").notna()))
    for row in legible(kept, "", MOST_CURVES)[0]:
        curve = _curve(row, "valid_curve")
        if curve is not None:
            axis.plot(*curve, color=LEARNED, lw=0.7, alpha=0.25)
    training, held_out = _curve(best, "train_curve"), _curve(best, "valid_curve")
    if training is not None:
        axis.plot(*training, color=LEARNED, ls=":", lw=1.3)
    if held_out is not None:
        axis.plot(*held_out, color=LEARNED, lw=2.2)
    axis.set_yscale("log")
    axis.set_xlabel("epoch")
    axis.margins(x=0.02)
    ends = [] if best is None else [(float(best["valid_loss"]), "best", LEARNED)]
    for grid in records(baselines(rows).head(1)):
        axis.axhline(float(grid["valid_loss"]), color=BASELINE, lw=1.1)
        ends.append((float(grid["valid_loss"]), str(grid["start"]), BASELINE))
    plain_log(axis)
    label_ends(axis, ends, gap=0.085)


def _curve(row: Mapping[str, Any] | None, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(epochs, losses) of a curve whose last entry is the last epoch run.

    None where there is nothing to draw.
    """
    if row is None or row[name] is None or np.ndim(row[name]) == 0 or len(row[name]) == 0:
        return None
    losses = np.array([np.nan if value is None else value for value in row[name]], dtype=float)
    last = len(losses) - 1 if missing(row["epochs_run"]) else int(row["epochs_run"])
    losses = np.where(losses > 0, losses, np.nan)
    if not np.isfinite(losses).any():
        return None
    return np.arange(last - len(losses) + 1, last + 1), losses


def gamma_plot(data: FigureData) -> Plot | None:
    """Gain against gamma, one panel per solver, a line per NFE, the range over seeds as a band.

    None where no procedure was tried with two gammas or more.
    """
    learned = of_kind(data.frame, "learned", "ok")
    learned = where(learned, column(learned, "gain").notna() & column(learned, "gamma").notna())
    # between procedures more differs than gamma
    parts = [rows for _, rows in groups(learned, "procedure") if varies(rows, "gamma")]
    if not parts:
        return None
    learned = pd.concat(parts)
    gammas = sorted(set(numbers(learned, "gamma")))
    shown, note = legible(families(learned), "solvers")
    figure, axes = panels(len(shown), height=2.7)
    for axis, (label, rows) in zip(axes, shown, strict=True):
        axis.set_title(plain(label))
        (_lines if len(gammas) <= MOST_GAMMAS else _scatter)(axis, rows, gammas)
        axis.set_xlabel("γ   (0: hard teacher forcing)")
    for axis in axes[:: columns_of(len(shown))]:
        axis.set_ylabel("gain over the best hand-made grid")
    tried = ", ".join(f"{gamma:.3g}" for gamma in gammas[:8])
    alt = f"Gain against gamma ({tried}) for {', '.join(label for label, _ in shown)}"
    caption = _gamma_caption(len(gammas)) + note
    return Plot(data.name("gamma"), "Gain against γ", caption, alt, figure)


def _gamma_caption(gammas: int) -> str:
    text = (
        "Above 1 (the line) a learned schedule is closer to the teacher than every hand-made grid."
    )
    if gammas <= MOST_GAMMAS:
        text += (
            " For each γ and seed the best schedule of the search; line: mean over seeds, band: "
            "their range."
        )
    else:
        text += " Every learned schedule is a dot; darker means more NFE."
    return text


def _lines(axis: Axes, rows: pd.DataFrame, gammas: Sequence[float]) -> None:
    ends = []
    by_nfe = groups(rows, "nfe")
    for (nfe, inside), colour in zip(by_nfe, _shades(len(by_nfe)), strict=True):
        spread = [_gains_of_seeds(found) for _, found in groups(inside, "gamma")]
        x = [gammas.index(float(gamma)) for gamma, _ in groups(inside, "gamma")]
        mean, low, high = ([float(f(gains)) for gains in spread] for f in (np.mean, min, max))
        axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        if len(x) == 1:
            axis.vlines(x, low, high, color=colour, alpha=0.35, lw=5)
        axis.plot(x, mean, color=colour, marker="o")
        ends.append((mean[-1], f"{nfe} NFE", colour))
    axis.set_xticks(range(len(gammas)), [f"{gamma:.3g}" for gamma in gammas])
    axis.set_xlim(-0.3, len(gammas) - 0.7)
    _gain_axis(axis)
    label_ends(axis, ends, gap=0.085)


def _gains_of_seeds(rows: pd.DataFrame) -> list[float]:
    """The best gain of each seed."""
    return [float(numbers(inside, "gain").max()) for _, inside in groups(rows, "seed", nulls=True)]


def _scatter(axis: Axes, rows: pd.DataFrame, gammas: Sequence[float]) -> None:
    ends = []
    by_nfe = groups(rows, "nfe")
    look = {"ms": 3.5, "alpha": 0.6, "mec": "none"}
    for (nfe, inside), colour in zip(by_nfe, _shades(len(by_nfe)), strict=True):
        gains = numbers(inside, "gain")
        axis.plot(numbers(inside, "gamma"), gains, "o", color=colour, **look)
        ends.append((float(gains.median()), f"{nfe} NFE", colour))
    axis.set_xscale("symlog", linthresh=min(gamma for gamma in gammas if gamma > 0))
    _gain_axis(axis)
    label_ends(axis, ends, gap=0.085)


def _gain_axis(axis: Axes) -> None:
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.8), max(high, 1.25))
    axis.axhline(1, color=MUTED, lw=1)
    plain_log(axis)


def _shades(count: int) -> list[str]:
    """Oranges from light (few evaluations) to dark (many)."""
    places = np.linspace(0, len(SHADES) - 1, count).round().astype(int) if count > 1 else [2]
    return [SHADES[i] for i in places]
