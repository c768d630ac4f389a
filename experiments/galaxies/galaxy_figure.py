"""Draws galaxies from the same noise, and writes the table of a finished sweep as Markdown.

    python experiments/galaxies/galaxy_figure.py results/galaxies

reads the tables and the sample images in a folder, nothing else: neither models nor weights are
needed. It writes galaxies.png into the folder, and the table to the terminal.

A row of the table is a cell. Losses are mean squared differences of pixels to the teacher's sample
from the same noise, with 1.96 standard errors. The best hand-made grid is that with the smallest
loss on the samples of the column. `nearer` is its loss over the learned one's; on fresh samples
with the interval of the sweep, which is paired sample by sample, and once more for medians.
"""

from __future__ import annotations

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
    "fresh, learned | nearer, fresh | in the median |"
)


def best_of(results: pd.DataFrame) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Of every cell the hand-made grid that is best on fresh samples, and the learned schedule."""
    fine = results[results["status"] == "ok"].sort_values(["model", "nfe"], kind="stable")
    found = []
    for _, rows in fine.groupby("cell", sort=False):
        grids = rows[rows["kind"] == "baseline"].nsmallest(1, "eval_loss").to_dict("records")
        learned = rows[rows["best"] & (rows["kind"] == "learned")].to_dict("records")
        if grids and learned:
            found.append((grids[0], learned[0]))
    return found


def table(results: pd.DataFrame) -> list[str]:
    """The lines of the Markdown table, one per cell."""
    lines = [HEAD, "| --- | ---: | --- |" + " ---: |" * 7]
    for hand, learned in best_of(results):
        ends = f"({learned['eval_gain_low']:.1f} to {learned['eval_gain_high']:.1f})"
        texts = [
            str(hand["model"]),
            str(hand["nfe"]),
            str(hand["start"]),
            f"{learned['best_baseline']:.2g}",
            f"{learned['valid_loss']:.2g}",
            f"{learned['gain']:.1f}×",
            *(
                f"{row['eval_loss']:.2g} ± {1.96 * row['eval_loss_sem']:.1g}"
                for row in (hand, learned)
            ),
            f"{learned['eval_gain']:.1f}× {ends}",
            f"{learned['eval_gain_median']:.1f}×",
        ]
        lines.append(f"| {' | '.join(texts)} |")
    return lines


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
