"""The figures of a report: a table of functions that anyone can add to.

    @figures.register("my-figure")
    def my_figure(data: FigureData) -> Plot | None: ...

A figure takes the results of one model and returns a `Plot`, a list of them, or None where it has
nothing to show. A report draws all registered figures in the order of their registration, or those
that are named, `python:FILE.py:NAME` included. Nothing here loads matplotlib: the module of a
figure does, when it is drawn first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ...core.noise import NoiseSchedule
from ...core.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class FigureData:
    """The results of one model, as a figure sees them.

    Attributes:
        model: the model's name.
        frame: its learned schedules and hand-made grids, one row each, as `load_results` gives
            them.
        teachers: key of a teacher (column `teacher` of the frame) -> scores of the teacher's own
            samples, with the names of the evaluations' columns.
        noise: the model's noise schedule; None where no schedule file of the sweep names it.
        prefix: what names of plots begin with, so that two models' plots differ.
        images: cell -> sample images from the same noise, `teacher`, `baseline` and `learned`,
            each [n, C, H, W] in [-1, 1]; empty where none were kept.
        ablation: the levels of an ablation's factors against the base, as `report.ablation` has
            them; empty without one.
        importance: how much each axis matters in each cell: cell, axis, importance.
        interactions: levels against the base at each level of another factor, as
            `report.interactions` has them; empty without a full ablation.
    """

    model: str
    frame: pd.DataFrame
    teachers: Mapping[str, Mapping[str, Any]]
    noise: NoiseSchedule | None
    prefix: str
    images: Callable[[str], Mapping[str, np.ndarray]]
    ablation: pd.DataFrame = field(default_factory=pd.DataFrame)
    importance: pd.DataFrame = field(default_factory=pd.DataFrame)
    interactions: pd.DataFrame = field(default_factory=pd.DataFrame)

    def name(self, figure: str) -> str:
        """The name of a plot of this model, and so of its file."""
        return f"{self.prefix}-{figure}"


@dataclass(frozen=True)
class PlotGroup:
    """Plots that stand together on the page: their common heading, and a sentence below it."""

    title: str
    text: str = ""


@dataclass(frozen=True)
class Strip:
    """Images of one kind side by side, pixel by pixel, as one PNG.

    Attributes:
        kind: teacher, baseline or learned.
        label: the name of the kind on the page.
    """

    kind: str
    label: str
    png: bytes


@dataclass(frozen=True)
class Pictures:
    """Sample images of a cell for the page, which shows them itself: column j of every strip
    starts from the same noise.

    Attributes:
        cell: the cell, as in the column of the tables.
        count: images per strip.
        width, height: of one image, in pixels.
    """

    cell: str
    count: int
    width: int
    height: int
    strips: Sequence[Strip]


@dataclass(frozen=True)
class Plot:
    """A drawn figure.

    Attributes:
        name: file name without extension, from `FigureData.name`.
        title, caption: above and below it on the page.
        alt: what it shows, for those who cannot see it.
        figure: a matplotlib figure.
        group: neighbours with an equal group stand under a common heading.
        pictures: the page shows these in the place of the figure.
        twin: the page's script draws the same values itself, so that the figure is seen on paper
            and without scripts alone.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Canvas
    group: PlotGroup | None = None
    pictures: Pictures | None = None
    twin: bool = False


@dataclass(frozen=True)
class Drawing:
    """A plot ready for the page and for its file.

    Attributes:
        svg: an <svg> element for inside a page.
        panels: where its panels are in it, each a viewBox "x y width height": a narrow page shows
            them one below the other.
    """

    name: str
    title: str
    caption: str
    alt: str
    group: PlotGroup | None
    svg: Markup
    png: bytes
    panels: Sequence[str] = ()
    pictures: Pictures | None = None
    twin: bool = False


FigureFunction = Callable[[FigureData], Plot | Sequence[Plot] | None]

figures: Registry[FigureFunction] = Registry("figure")
"""Name -> figure, in the order in which a report shows them."""

for _name, _place in {
    "distance": "quality:distance_plot",
    "frechet": "quality:frechet_plot",
    "ablation": "ablation:ablation_plots",
    "interactions": "interactions:interaction_plots",
    "importance": "ablation:importance_plot",
    "grids": "grids:grids_plot",
    "gamma": "curves:gamma_plot",
    "convergence": "curves:convergence_plot",
    "cost": "cost:cost_plot",
    "samples": "samples:samples_plots",
}.items():
    figures.register(_name, lazily=f"{__name__}.{_place}")


def check_figures(names: Sequence[str] | None) -> None:
    """Raise InputError for a name that no figure has; None stands for all that are registered."""
    for name in names or ():
        figures.get(name)
