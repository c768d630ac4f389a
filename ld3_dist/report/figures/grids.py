"""Where the knots went: learned grids against hand-made ones, on the axis of the noise level.

A knot is a time t_i. Drawn is the noise level sigma(t) / alpha(t), on a logarithmic axis, where the
noise schedule is known; for EDM's that is the time itself. A dot under a knot is the network time
of the evaluation made there."""

from __future__ import annotations

# A selection from a frame is a union of types to pandas' own annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from ...core.noise import NoiseSchedule
from ..summary import best_row
from ..text import number
from .cells import baselines, families, legible
from .style import INK, LEARNED, Plot, baseline_colours, panels

Level = Callable[[Sequence[float]], np.ndarray]

HAND_MADE = 3
"""Hand-made grids drawn beside a learned one: the best of the cell."""

MOST_NFE = 4
"""Values of NFE drawn in one panel."""


def grids_plot(frame: pd.DataFrame, name: str, noise: NoiseSchedule | None = None) -> Plot | None:
    """One panel a solver: for each NFE the learned grid and the best hand-made ones; None where
    nothing was learned.
    """
    shown, note = legible([item for item in families(frame) if _strips(item[1])], "solvers", most=6)
    if not shown:
        return None
    strips = [_strips(rows) for _, rows in shown]
    colours = baseline_colours(
        frame.loc[frame["kind"] == "baseline", "start"].dropna().unique().tolist()
    )
    figure, axes = panels(
        len(shown), height=0.9 + 0.2 * max(_heights(inside)[-1] for inside in strips), columns=2
    )
    for axis, (label, _), inside in zip(axes, shown, strips, strict=True):
        _panel(axis, label, inside, colours, _level(noise), noise is not None)
    caption = (
        "Sampling runs from left (noise) to right (data). Ticks are knots; dots below a learned "
        "grid are the network's"
        f" own times, joined to the knot they belong to. Shown are the best {HAND_MADE} "
        f"hand-made grids of a cell"
        f" and up to {MOST_NFE} values of NFE.{note}"
    )
    alt = "Knots of learned grids beside hand-made ones: " + "; ".join(label for label, _ in shown)
    return Plot(name, "Learned grids against hand-made ones", caption, alt, figure)


def _level(noise: NoiseSchedule | None) -> Level:
    """Times -> what is drawn: sigma / alpha where the schedule is known, else the times."""

    def level(times: Sequence[float]) -> np.ndarray:
        t = torch.as_tensor(np.asarray(times, dtype=float))
        return (t if noise is None else (-noise.lam(t)).exp()).numpy()

    return level


def _strips(rows: pd.DataFrame) -> list[tuple[str, str, Sequence[float], Sequence[float]]]:
    """(label, name of the hand-made grid or "", knots, network times), from top to bottom."""
    found: list[tuple[str, str, Sequence[float], Sequence[float]]] = []
    nfes = [nfe for nfe, inside in rows.groupby("nfe", sort=True) if inside["best"].any()]
    for nfe in legible(nfes, "NFE", MOST_NFE)[0]:
        inside = rows[rows["nfe"] == nfe]
        best = best_row(inside)
        if best is None or best["knots"] is None:
            continue
        found.append(
            (
                f"{nfe} NFE   learned",
                "",
                best["knots"],
                best["evals"] if best["evals"] is not None else (),
            )
        )
        for row in baselines(inside).head(HAND_MADE).to_dict("records"):
            if row["knots"] is not None:
                found.append((row["start"], row["start"], row["knots"], ()))
    return found


def _panel(
    axis: Axes, title: str, strips, colours: dict[str, str], level: Level, known: bool
) -> None:
    heights = _heights(strips)
    for y, (_, grid, knots, evals) in zip(heights, strips, strict=True):
        colour = colours[grid] if grid else LEARNED
        x = level(knots)
        axis.hlines(y, x.min(), x.max(), color=colour, lw=0.8, alpha=0.5)
        axis.vlines(x, y - 0.3, y + 0.3, color=colour, lw=2.4 if not grid else 1.5)
        if len(evals):
            times = level(evals)
            if (
                len(evals) == len(knots) - 1
            ):  # one evaluation a step: at the knot, if the times were coupled
                axis.plot(
                    [x[:-1], times],
                    [[y + 0.3] * len(times), [y + 0.75] * len(times)],
                    color=colour,
                    lw=0.8,
                )
            axis.plot(times, [y + 0.75] * len(times), "o", color=colour, ms=3.4, mec="none")
    axis.set_title(title)
    axis.set_yticks(heights, [label for label, *_ in strips])
    for text, (label, grid, *_) in zip(axis.get_yticklabels(), strips, strict=True):
        text.set_color(colours.get(grid, INK))
        text.set_fontweight("bold" if label.endswith("learned") else "normal")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(visible=False)
    axis.set_ylim(heights[-1] + 0.7, -0.6)
    _scale(axis, [value for _, _, knots, _ in strips for value in level(knots)], known)


def _heights(strips: list[tuple[str, str, Sequence[float], Sequence[float]]]) -> list[float]:
    """Places of the strips: room for the network times below a learned grid, and more above the
    next one.
    """
    heights, y = [], 0.0
    for i, (_, grid, *_) in enumerate(strips):
        y += (
            0.0
            if i == 0
            else 1.0 + (0.55 if not strips[i - 1][1] else 0.0) + (0.9 if not grid else 0.0)
        )
        heights.append(y)
    return heights


def _scale(axis: Axes, values: list[float], known: bool) -> None:
    low, high = min(values), max(values)
    if low > 0 and high / low > 30:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.invert_xaxis()
    axis.set_xlabel("noise level σ/α" if known else "time t (the noise level σ for EDM models)")
