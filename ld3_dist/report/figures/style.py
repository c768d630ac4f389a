"""The look of a report's figures: one palette, one type size, and the same bytes every time.

Three things are compared everywhere and keep their colours everywhere: learned schedules (orange),
hand-made grids (blues), the teacher (grey, dashed). The hues are Okabe and Ito's, which stay apart
under every common colour blindness."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..formats import visible

LEARNED = "#d55e00"
BASELINE = "#0072b2"
TEACHER = "#57606a"
INK = "#1f2328"
MUTED = "#6e7782"
RULE = "#dfe3e8"
BASELINES = (BASELINE, "#4ea3dc", "#2b4f81", "#7fb2c9", "#6b7fd7", "#3c8d9e")
SHADES = ("#f0a35e", "#e4772a", LEARNED, "#a84a00", "#783500")
MARKERS = ("o", "s", "^", "D", "v", "P")

WIDTH = 10.5
"""Inches of a full-width figure."""

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "ytick.minor.width": 0.4,
    "xtick.minor.width": 0.4,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "ld3_dist",
    "svg.fonttype": "path",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "path.simplify": True,
}
"""matplotlib's settings while figures are made and saved."""


def panels(
    count: int, height: float, columns: int = 3, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` equal panels, at most `columns` per line; places left over stay empty."""
    columns = columns_of(count, columns)
    lines = -(-count // columns)
    width = WIDTH if columns > 1 else 0.5 * WIDTH
    figure = Figure(
        figsize=(width, height * lines), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    )
    axes = figure.subplots(lines, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend under all panels, in as many lines as make it no wider than a panel may be.

    So it fits below a single one, and a narrow page can show it beside the others.
    """
    room = 0.46 * WIDTH * figure.dpi  # a panel has half of the width; letters are wider in files
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns,
            fontsize=7.5,
            frameon=False,
        )
        if columns == 1 or legend.get_window_extent().width <= room:
            return
        legend.remove()


def columns_of(count: int, most: int = 3) -> int:
    """Panels a line: four stand two by two."""
    return 2 if count == 4 else min(count, most)


def baseline_colours(names: list[str]) -> dict[str, str]:
    """A blue for each hand-made grid, the same in every figure of a report."""
    return {name: BASELINES[i % len(BASELINES)] for i, name in enumerate(sorted(names))}


def plain(text: str) -> str:
    """A name as matplotlib draws it letter by letter: its dollar signs begin no formula."""
    return visible(text).replace("$", r"\$")


def stacked(text: str, most: int = 13) -> str:
    """A name as `plain` has it, on lines of at most `most` letters where it can be broken.

    A line may end after a space, a comma, a plus sign or a slash, and after a full stop or a hyphen
    that no digit follows.
    """
    lines = [""]
    for piece in re.findall(r".*?(?:[ ,+/]|[.-](?!\d))|.+", visible(text)):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(plain(line.rstrip()) for line in lines)


def label_ends(axes: Axes, labels: list[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Write each (y, text, colour) beside the right edge at height y.

    Labels that would overlap are moved apart.
    """
    if not labels:
        return
    labels = sorted(labels, key=lambda label: label[0])
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = np.array([to_axes.transform((1.0, y))[1] for y, _, _ in labels])
    places = wanted.clip(0, 1)
    for _ in range(200):  # push overlapping neighbours apart, a little each time
        overlap = gap - np.diff(places)
        if (overlap <= 1e-6).all():
            break
        push = np.where(overlap > 0, overlap / 2, 0)
        places[:-1] -= push
        places[1:] += push
    places += max(0.0, -0.02 - places[0])
    for place, (_, text, colour) in zip(places, labels, strict=True):
        bold = "bold" if colour in (LEARNED,) else "normal"
        axes.annotate(
            plain(text),
            (1.015, place),
            xycoords="axes fraction",
            color=colour,
            va="center",
            fontsize=8,
            fontweight=bold,
        )


def _settle(figure: Figure) -> None:
    """Lay the figure out once, not for every file: that costs more than drawing it."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def as_png(figure: Figure) -> bytes:
    """PNG at 160 dpi, without date or version, so that equal tables give equal files."""
    _settle(figure)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=160, metadata={"Software": None})
    return sink.getvalue()


def panel_boxes(figure: Figure) -> list[str]:
    """The panels of a laid-out figure as viewBoxes of its SVG: "x y width height" in points.

    Behind several of them its legends, without which they are not understood.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _settle(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    scale, height = 72 / figure.dpi, 72 * figure.get_figheight()
    found = []
    legends = figure.legends if len(figure.axes) > 1 else []
    for part in (*figure.axes, *legends):
        box = part.get_tightbbox(renderer)
        if box is not None:
            x, y = box.x0 * scale - 2, height - box.y1 * scale - 2
            size = f"{box.width * scale + 4:.1f} {box.height * scale + 4:.1f}"
            found.append(f"{x:.1f} {y:.1f} {size}")
    return found


def file_name(name: str, taken: Collection[str]) -> str:
    """A plot's name as the name of a file and of ids, different from those that are taken."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80] or "figure"
    found, number = slug, 2
    while found in taken:
        found, number = f"{slug}-{number}", number + 1
    return found


def as_svg(figure: Figure, name: str, alt: str) -> Markup:
    """An <svg> element for inside a page.

    Its ids begin with `name`, and its colours are the page's variables.

    Args:
        alt: what it shows, in words.
    """
    _settle(figure)
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    label = escape(visible(alt))
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


VARIABLES = (
    {LEARNED: "learned", TEACHER: "teacher", INK: "ink", MUTED: "muted", RULE: "rule"}
    | {colour: f"base{i}" for i, colour in enumerate(BASELINES)}
    | {colour: f"shade{i}" for i, colour in enumerate(SHADES) if colour != LEARNED}
)
"""Colours that a page may turn brighter on a dark ground."""
