"""Samples of teacher, best hand-made grid and learned schedule from the same noise."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ...store.frames import column, records
from . import FigureData, Pictures, Plot, PlotGroup, Strip
from .cells import baselines, cells, chosen_cells
from .style import BASELINE, LEARNED, MUTED, TEACHER, WIDTH, plain

MOST_IMAGES = 12
MOST_CELLS = 6
MOST_PIXELS = 128
"""Side of a drawn image; larger ones are averaged down, smaller ones magnified unsmoothed."""

STRIP_PIXELS = 120_000
"""Pixels of one strip on the page: fewer images where they are large, two at least."""

MOST_SIDE = 256
"""Side of an image on the page; larger ones are averaged down."""

GROUP = PlotGroup("Samples from the same noise", "Each column starts from the same noise.")


def samples_plots(data: FigureData) -> list[Plot]:
    """One strip of images per cell, for the cells whose images were kept."""
    named = cells(data.frame)
    kept = [(label, rows) for label, rows in named if data.images(_cell_of(rows))]
    shown, note = chosen_cells(kept, MOST_CELLS)
    plots = []
    for i, (label, rows) in enumerate(shown):
        images = data.images(_cell_of(rows))
        hand_made = records(baselines(rows).head(1))
        grid = str(hand_made[0]["start"]) if hand_made else "hand-made"
        caption = note.strip() if i == len(shown) - 1 else ""
        alt = f"Sample images of {label}: rows are {', '.join(images)}; columns share their noise"
        strip = _strip(images, grid)
        pictures = _pictures(_cell_of(rows), images, grid)
        name = data.name(f"samples-{i}")
        plots.append(Plot(name, label, caption, alt, strip, GROUP, pictures))
    return plots


def _pictures(cell: str, images: Mapping[str, np.ndarray], grid: str) -> Pictures:
    """The images at their own size, those of one kind side by side."""
    height, width = next(iter(images.values())).shape[2:]
    most = max(2, STRIP_PIXELS // (height * width))
    count = min(MOST_IMAGES, most, *(len(value) for value in images.values()))
    strips = []
    for kind, values in images.items():
        tiles = [_pixels(image, MOST_SIDE) for image in values[:count]]
        label = grid if kind == "baseline" else kind
        strips.append(Strip(kind, label, _png(np.concatenate(tiles, axis=1))))
        height, width = tiles[0].shape[:2]
    return Pictures(cell, count, width, height, strips)


def _png(pixels: np.ndarray) -> bytes:
    """[H, W] or [H, W, 3] in [0, 1] -> a PNG of these pixels."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(sink, "png", optimize=True)
    return sink.getvalue()


def _cell_of(rows: pd.DataFrame) -> str:
    return str(column(rows, "cell").iloc[0])


def write_strip(
    images: Mapping[str, torch.Tensor],
    grid: str,
    path: str | Path,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write one PNG with rows of images: teacher, hand-made grid and learned schedule.

    Args:
        images: `teacher`, `baseline` and `learned`, each [n, C, H, W] in [-1, 1].
        grid: name of the hand-made grid.
        notes: a line or two below the label of a row.
    """
    _strip({kind: value.numpy() for kind, value in images.items()}, grid, notes).savefig(
        path, dpi=150, metadata={"Software": None}
    )


def _strip(
    images: Mapping[str, np.ndarray], grid: str, notes: Mapping[str, str] | None = None
) -> Figure:
    """Three rows of images; a row's label has the colour that its kind has in every figure."""
    looks = {
        "teacher": ("teacher", TEACHER),
        "baseline": (grid, BASELINE),
        "learned": ("learned", LEARNED),
    }
    count = min(MOST_IMAGES, *(len(value) for value in images.values()))
    height, width = next(iter(images.values())).shape[2:]
    left = max(1.35 if notes else 0.9, 0.2 + 0.078 * len(plain(grid)))  # inches a letter
    cell = min((WIDTH - left) / count, 1.05)
    figure = Figure(figsize=(left + cell * count, (cell * len(images)) * height / width))
    axes = figure.add_axes((left / figure.get_figwidth(), 0, 1 - left / figure.get_figwidth(), 1))
    for line, (kind, values) in enumerate(images.items()):
        for place in range(count):
            axes.imshow(
                _pixels(values[place]),
                extent=(place + 0.03, place + 0.97, line + 0.97, line + 0.03),
                interpolation="none",
                cmap="gray",
                vmin=0,
                vmax=1,
            )
        text, colour = looks[kind]
        weight = "bold" if kind == "learned" else "normal"
        note = (notes or {}).get(kind, "")
        beside: dict[str, Any] = {
            "xy": (-0.1, line + 0.5),
            "textcoords": "offset points",
            "ha": "right",
            "annotation_clip": False,
        }
        axes.annotate(
            plain(text),
            xytext=(0, 2 if note else 0),
            color=colour,
            va="bottom" if note else "center",
            fontsize=9,
            fontweight=weight,
            **beside,
        )
        axes.annotate(note, xytext=(0, -1), color=MUTED, va="top", fontsize=7, **beside)
    axes.set(xlim=(0, count), ylim=(len(images), 0), aspect="auto")
    axes.axis("off")
    return figure


def _pixels(image: np.ndarray, most: int = MOST_PIXELS) -> np.ndarray:
    """[C, H, W] in [-1, 1] -> [H, W] or [H, W, 3] in [0, 1], averaged down where it is large."""
    x = torch.as_tensor(np.ascontiguousarray(image)).nan_to_num().clamp(-1, 1).add(1).div(2)
    scale = most / max(x.shape[-2:])
    if scale < 1:
        x = torch.nn.functional.interpolate(x[None], scale_factor=scale, mode="area")[0]
    return x[0].numpy() if len(x) == 1 else x.permute(1, 2, 0).numpy()
