"""Draws galaxies from the same noise, and writes the table of a finished sweep as Markdown.

    python experiments/galaxies/galaxy_figure.py results/galaxies

reads the tables and the sample images in a folder, nothing else: neither models nor weights are
needed. It writes galaxies.png into the folder, and the table to the terminal.

A row of the table is a cell. Losses are mean squared differences of pixels to the teacher's sample
from the same noise. The interval of a mean is 1.96 standard errors; that of the ratio of two means
a / b follows from the relative standard errors of both, as if they were independent,

    a / b * exp(+- 1.96 sqrt((s_a / a)^2 + (s_b / b)^2)).

Both are of the same samples, so that this interval is too wide rather than too narrow.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import ld3_dist as ld3
from ld3_dist.report import read_sweep_tables

MODELS = ("hsc32", "hsc64", "quasar72")
NFE = 4
COLUMNS = 8
ROWS = {"teacher": "teacher", "baseline": "best hand-made", "learned": "learned"}
HEAD = (
    "| model | NFE | best hand-made | held out | learned | nearer | fresh, hand-made | "
    "fresh, learned | nearer, fresh |"
)


def best_of(results: pd.DataFrame) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By cell, the best hand-made grid and the best learned schedule, by held-out loss."""
    fine = results[results["status"] == "ok"].sort_values(["model", "nfe"], kind="stable")
    found = {}
    for cell, rows in fine.groupby("cell", sort=False):
        pick = lambda kind, rows=rows: rows[rows["kind"] == kind].nsmallest(1, "valid_loss")
        pair = [pick(kind).to_dict("records") for kind in ("baseline", "learned")]
        if all(pair):
            found[str(cell)] = (pair[0][0], pair[1][0])
    return found


def table(results: pd.DataFrame) -> list[str]:
    """The lines of the Markdown table, one per cell."""
    lines = [HEAD, "| --- | ---: | --- |" + " ---: |" * 6]
    for hand, learned in best_of(results).values():
        ratio, low, high = ratio_of(hand, learned)
        texts = [
            str(hand["model"]),
            str(hand["nfe"]),
            str(hand["start"]),
            f"{hand['valid_loss']:.2g}",
            f"{learned['valid_loss']:.2g}",
            f"{hand['valid_loss'] / learned['valid_loss']:.1f}×",
            *(
                f"{row['eval_loss']:.2g} ± {1.96 * row['eval_loss_sem']:.1g}"
                for row in (hand, learned)
            ),
            f"{ratio:.1f}× ({low:.1f} to {high:.1f})",
        ]
        lines.append(f"| {' | '.join(texts)} |")
    return lines


def fresh(row: dict[str, Any]) -> str:
    """The mean of a row on fresh samples, with its interval."""
    return f"{row['eval_loss']:.2g} ± {1.96 * row['eval_loss_sem']:.1g}"


def ratio_of(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, float, float]:
    """The ratio of two fresh losses, and the ends of its interval."""
    ratio = a["eval_loss"] / b["eval_loss"]
    spread = math.hypot(*(row["eval_loss_sem"] / row["eval_loss"] for row in (a, b)))
    return ratio, ratio * math.exp(-1.96 * spread), ratio * math.exp(1.96 * spread)


def draw(folder: Path, cells: dict[str, str]) -> Figure:
    """Rows of images for each model: teacher, best hand-made grid, learned; columns share noise.

    Args:
        cells: the cell of each model whose images are drawn.
    """
    sweep = read_sweep_tables(folder)
    figure = Figure(figsize=(9, 1.04 * len(ROWS) * len(cells)))
    axes = figure.subplots(len(ROWS) * len(cells), COLUMNS, squeeze=False)
    for i, (model, cell) in enumerate(cells.items()):
        images = sweep.images(cell)
        for j, (kind, name) in enumerate(ROWS.items()):
            line = axes[i * len(ROWS) + j]
            for place, image in zip(line, images[kind], strict=False):
                place.imshow(np.clip(image[0], -1, 1), cmap="gray", vmin=-1, vmax=1)
            for place in line:
                place.set_xticks([])
                place.set_yticks([])
                place.spines[:].set_visible(False)
            weight = "bold" if kind == "learned" else "normal"
            text = f"{model}\n{name}"
            line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontweight=weight)
    figure.subplots_adjust(0.15, 0.005, 0.995, 0.995, 0.03, 0.03)
    return figure


def main(folder: Path) -> None:
    """Draw the figure of a folder and print its table."""
    results = ld3.load_results(folder)
    print("\n".join(table(results)))
    cells = {name: f"{name}/ddim/{NFE}" for name in MODELS}
    figure = draw(folder, cells)
    figure.savefig(folder / "galaxies.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
