"""How learning went (loss by epoch) and what the noise ball did (gain against gamma)."""

from __future__ import annotations

# A selection from a frame is a union of types to pandas' own annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..summary import best_row
from .cells import baselines, cells, chosen_cells, families, legible
from .quality import plain_log
from .style import BASELINE, LEARNED, MUTED, SHADES, Plot, columns_of, label_ends, panels

MOST_CURVES = 40
"""Held-out curves of one panel."""


def convergence_plot(frame: pd.DataFrame, name: str) -> Plot | None:
    """Held-out loss by epoch, one panel a cell, the best member in bold; None where no curve was
    kept.
    """
    named = [
        (label, rows)
        for label, rows in cells(frame)
        if _curve(best_row(rows), "valid_curve") is not None
    ]
    if not named:
        return None
    shown, note = chosen_cells(named)
    figure, axes = panels(len(shown), height=2.5)
    for axis, (label, rows) in zip(axes, shown, strict=True):
        _convergence(axis, label, rows)
    for axis in axes[:: columns_of(len(shown))]:
        axis.set_ylabel("distance to the teacher")
    caption = (
        "Bold: held-out loss of the cell's best member; thin: other members; dotted: the best "
        "member's training loss, "
        f"inside the noise ball where γ > 0. Blue: the best hand-made grid.{note}"
    )
    alt = "Loss by epoch on a logarithmic axis for " + ", ".join(label for label, _ in shown)
    return Plot(name, "Convergence", caption, alt, figure)


def _convergence(axis: Axes, label: str, rows: pd.DataFrame) -> None:
    axis.set_title(label)
    best = best_row(rows)
    learned = rows[(rows["kind"] == "learned") & rows["valid_curve"].notna()]
    for i in legible(list(range(len(learned))), "", MOST_CURVES)[0]:
        curve = _curve(learned.iloc[i], "valid_curve")
        if curve is not None:
            axis.plot(*curve, color=LEARNED, lw=0.7, alpha=0.25)
    for column, look in (("train_curve", {"ls": ":", "lw": 1.3}), ("valid_curve", {"lw": 2.2})):
        curve = _curve(best, column)
        if curve is not None:
            axis.plot(*curve, color=LEARNED, **look)
    axis.set_yscale("log")
    axis.set_xlabel("epoch")
    axis.margins(x=0.02)
    ends = [(float(best["valid_loss"]), "best", LEARNED)] if best is not None else []
    hand_made = baselines(rows)
    if len(hand_made):
        loss, grid = float(hand_made["valid_loss"].iloc[0]), str(hand_made["start"].iloc[0])
        axis.axhline(loss, color=BASELINE, lw=1.1)
        ends.append((loss, grid, BASELINE))
    plain_log(axis)
    label_ends(axis, ends, gap=0.085)


def _curve(row: pd.Series | None, column: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(epochs, losses) of a curve whose last entry is the last epoch run; None where there is none
    to draw.
    """
    if row is None or row[column] is None or np.ndim(row[column]) == 0 or len(row[column]) == 0:
        return None
    losses = np.array([np.nan if value is None else value for value in row[column]], dtype=float)
    last = len(losses) - 1 if pd.isna(row["epochs_run"]) else int(row["epochs_run"])
    losses = np.where(losses > 0, losses, np.nan)
    return (
        (np.arange(last - len(losses) + 1, last + 1), losses) if np.isfinite(losses).any() else None
    )


def gamma_plot(frame: pd.DataFrame, name: str) -> Plot | None:
    """Gain against gamma, one panel a solver, a line an NFE, the range over seeds as a band."""
    learned = frame[
        (frame["kind"] == "learned")
        & (frame["status"] == "ok")
        & frame["gain"].notna()
        & frame["gamma"].notna()
    ]
    if learned.empty:
        return None
    shown, note = legible(families(learned), "solvers")
    gammas = sorted(learned["gamma"].astype(float).unique())
    figure, axes = panels(len(shown), height=2.7)
    for axis, (label, rows) in zip(axes, shown, strict=True):
        axis.set_title(label)
        (_lines if len(gammas) <= MOST_GAMMAS else _scatter)(axis, rows, gammas)
        axis.set_xlabel("γ   (0: hard teacher forcing)")
    for axis in axes[:: columns_of(len(shown))]:
        axis.set_ylabel("gain over the best hand-made grid")
    caption = (
        "Above 1 (the line) a learned schedule is closer to the teacher than every hand-made grid."
    )
    if len(gammas) <= MOST_GAMMAS:
        caption += " For each γ and seed the best schedule of the search; line: mean over seeds, band: their range."
    else:
        caption += " Every learned schedule is a dot; darker means more NFE."
    if len(gammas) == 1:
        caption += " This sweep tried a single γ."
    alt = f"Gain against gamma ({', '.join(f'{g:.3g}' for g in gammas[:8])}) for " + ", ".join(
        label for label, _ in shown
    )
    return Plot(name, "Gain against γ", caption + note, alt, figure)


MOST_GAMMAS = 8
"""Up to here gamma was searched on a grid and has evenly spaced places; beyond, it is a continuous
axis.
"""


def _lines(axis: Axes, rows: pd.DataFrame, gammas: Sequence[float]) -> None:
    ends = []
    nfes = sorted(rows["nfe"].astype(int).unique())
    for nfe, colour in zip(nfes, _shades(len(nfes)), strict=True):
        inside = rows[rows["nfe"] == nfe]
        best = (
            inside.astype({"gain": float})
            .groupby(["gamma", "seed"], dropna=False)["gain"]
            .max()
            .groupby("gamma")
        )
        spread = best.agg(["mean", "min", "max"])
        x = [gammas.index(gamma) for gamma in spread.index.astype(float)]
        axis.fill_between(x, spread["min"], spread["max"], color=colour, alpha=0.15, lw=0)
        if len(x) == 1:
            axis.vlines(x, spread["min"], spread["max"], color=colour, alpha=0.35, lw=5)
        axis.plot(x, spread["mean"], color=colour, marker="o")
        ends.append((float(spread["mean"].iloc[-1]), f"{nfe} NFE", colour))
    axis.set_xticks(range(len(gammas)), [f"{gamma:.3g}" for gamma in gammas])
    axis.set_xlim(-0.3, len(gammas) - 0.7)
    _gain_axis(axis)
    label_ends(axis, ends, gap=0.085)


def _scatter(axis: Axes, rows: pd.DataFrame, gammas: Sequence[float]) -> None:
    nfes = sorted(rows["nfe"].astype(int).unique())
    ends = []
    for nfe, colour in zip(nfes, _shades(len(nfes)), strict=True):
        inside = rows[rows["nfe"] == nfe]
        axis.plot(
            inside["gamma"].astype(float),
            inside["gain"].astype(float),
            "o",
            color=colour,
            ms=3.5,
            alpha=0.6,
            mec="none",
        )
        ends.append((float(inside["gain"].median()), f"{nfe} NFE", colour))
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
