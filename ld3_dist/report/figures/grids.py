"""The knots of learned grids against those of hand-made ones, on the axis of the noise level.

A knot is a time t_i. Drawn is the noise level sigma(t) / alpha(t), on a logarithmic axis, where the
noise schedule is known; for EDM's that is the time itself. A dot under a knot is the network time
of the evaluation made there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from ...core.errors import InputError
from ...core.grid import discretize
from ...core.noise import NoiseSchedule
from ...schedule.file import Schedule
from ...store.frames import best_only, distinct, groups, of_kind, records
from ..formats import number
from ..summary import best_row
from . import FigureData, Plot
from .cells import baselines, families, legible
from .style import INK, LEARNED, STYLE, as_png, baseline_colours, panels, plain

Level = Callable[[Sequence[float]], np.ndarray]

HAND_MADE = 3
"""Hand-made grids drawn beside a learned one: the best of the cell."""

MOST_NFE = 4
"""Values of NFE drawn in one panel."""


@dataclass(frozen=True)
class Strip:
    """One line of a panel: a grid.

    Attributes:
        grid: name of the hand-made grid; empty for a learned one.
        evals: network times; empty where they are not drawn.
    """

    label: str
    grid: str
    knots: Sequence[float]
    evals: Sequence[float] = ()


def grids_plot(data: FigureData) -> Plot | None:
    """One panel per solver: for each NFE the learned grid and the best hand-made ones."""
    drawn = [(label, _strips(rows)) for label, rows in families(data.frame)]
    shown, note = legible([item for item in drawn if item[1]], "solvers", most=6)
    if not shown:
        return None
    colours = baseline_colours(distinct(of_kind(data.frame, "baseline"), "start"))
    tallest = max(_heights(strips)[-1] for _, strips in shown)
    figure, axes = panels(len(shown), height=0.9 + 0.2 * tallest, columns=2)
    for axis, (label, strips) in zip(axes, shown, strict=True):
        axis.set_title(plain(label))
        _panel(axis, strips, colours, noise_level(data.noise), data.noise is not None)
    caption = (
        "Sampling runs from left (noise) to right (data). Ticks are knots; dots below a learned "
        "grid are the network's own times, joined to the knot they belong to. Shown are the best "
        f"{HAND_MADE} hand-made grids of a cell and up to {MOST_NFE} values of NFE.{note}"
    )
    alt = "Knots of learned grids beside hand-made ones: " + "; ".join(label for label, _ in shown)
    title = "Learned grids against hand-made ones"
    return Plot(data.name("grids"), title, caption, alt, figure)


def schedule_picture(schedule: Schedule) -> bytes:
    """A PNG of the knots and network times of a schedule, above its best hand-made grids.

    Drawn are the grids of its cell that follow from the noise schedule alone.
    """
    import matplotlib

    noise, steps = schedule.noise_schedule, len(schedule.knots) - 1
    losses = {name: scores.get("valid_loss") for name, scores in schedule.baselines.items()}
    ranked = sorted(losses, key=lambda name: (losses[name] is None, losses[name] or 0.0, name))
    strips = [Strip(f"{schedule.nfe} NFE   learned", "", schedule.knots, schedule.evals)]
    for name in ranked:
        with contextlib.suppress(InputError):
            strips.append(Strip(name, name, discretize(noise, steps, name).tolist()))
    strips = strips[: 1 + HAND_MADE]
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = panels(1, height=0.9 + 0.2 * _heights(strips)[-1])
        _panel(axis, strips, baseline_colours(ranked), noise_level(noise), True)
        return as_png(figure)


def noise_level(noise: NoiseSchedule | None) -> Level:
    """Times -> sigma / alpha; the times themselves where the noise schedule is not known."""

    def level(times: Sequence[float]) -> np.ndarray:
        t = torch.as_tensor(np.array(times, dtype=float))
        return (t if noise is None else (-noise.lam(t)).exp()).numpy()

    return level


def _strips(rows: pd.DataFrame) -> list[Strip]:
    """The strips of a panel from top to bottom; none where nothing was learned."""
    found: list[Strip] = []
    with_best = [inside for _, inside in groups(rows, "nfe") if len(best_only(inside))]
    for inside in legible(with_best, "NFE", MOST_NFE)[0]:
        best = best_row(inside)
        if best is None or best["knots"] is None:
            continue
        evals = () if best["evals"] is None else best["evals"]
        found.append(Strip(f"{best['nfe']} NFE   learned", "", best["knots"], evals))
        found += [
            Strip(str(row["start"]), str(row["start"]), row["knots"])
            for row in records(baselines(inside).head(HAND_MADE))
            if row["knots"] is not None
        ]
    return found


def _panel(
    axis: Axes, strips: list[Strip], colours: dict[str, str], level: Level, known: bool
) -> None:
    heights = _heights(strips)
    for y, strip in zip(heights, strips, strict=True):
        colour = colours[strip.grid] if strip.grid else LEARNED
        x = level(strip.knots)
        axis.hlines(y, x.min(), x.max(), color=colour, lw=0.8, alpha=0.5)
        axis.vlines(x, y - 0.3, y + 0.3, color=colour, lw=1.5 if strip.grid else 2.4)
        if len(strip.evals):
            _network_times(axis, y, x, level(strip.evals))
    axis.set_yticks(heights, [plain(strip.label) for strip in strips])
    for text, strip in zip(axis.get_yticklabels(), strips, strict=True):
        text.set_color(colours.get(strip.grid, INK))
        text.set_fontweight("normal" if strip.grid else "bold")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(visible=False)
    axis.set_ylim(heights[-1] + 0.7, -0.6)
    _scale(axis, [value for strip in strips for value in level(strip.knots)], known)


def _network_times(axis: Axes, y: float, knots: np.ndarray, times: np.ndarray) -> None:
    """Dots below a learned grid, joined to the knots where a step has one evaluation."""
    ends = [y + 0.75] * len(times)
    if len(times) == len(knots) - 1:
        axis.plot([knots[:-1], times], [[y + 0.3] * len(times), ends], color=LEARNED, lw=0.8)
    axis.plot(times, ends, "o", color=LEARNED, ms=3.4, mec="none")


def _heights(strips: list[Strip]) -> list[float]:
    """Places of the strips, with room for the network times and above each learned grid."""
    heights, y = [], 0.0
    for i, strip in enumerate(strips):
        if i:
            below_learned = 0.55 if not strips[i - 1].grid else 0.0
            y += 1.0 + below_learned + (0.9 if not strip.grid else 0.0)
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
