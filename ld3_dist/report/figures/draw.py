"""Drawing the figures of one model: none of them can lose the report.

A figure that raises, or returns something else than plots, is named in a warning and left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from markupsafe import Markup

from ..formats import visible
from . import Drawing, FigureData, FigureFunction, Plot

log = logging.getLogger(__name__)


@dataclass
class Drawn:
    """The drawings of a report so far, and a warning for each figure that failed."""

    drawings: list[Drawing] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def draw(functions: Mapping[str, FigureFunction], data: FigureData, so_far: Drawn) -> list[Drawing]:
    """Draw figures (name -> function) of one model and add them to the report's."""
    if not functions:
        return []
    import matplotlib

    from .style import STYLE

    found: list[Drawing] = []
    for name, function in functions.items():
        with matplotlib.rc_context(STYLE):
            try:
                plots = _plots(function(data))
                taken = {drawing.name for drawing in (*so_far.drawings, *found)}
                found += _drawings(plots, taken)
            except Exception as error:  # it may be a user's code: anything may come
                reason = visible(f"{type(error).__name__}: {error}")
                of_model = f"The figure {name!r} of model {data.model!r}"
                so_far.warnings.append(f"{of_model} could not be drawn: {reason}.")
                log.warning("%s could not be drawn: %s", visible(of_model), reason, exc_info=error)
    so_far.drawings += found
    return found


def _plots(returned: object) -> list[Plot]:
    """The plots that a figure returned, as a list."""
    if returned is None:
        return []
    found: list[Plot] = []
    for item in returned if isinstance(returned, list | tuple) else [returned]:
        if not isinstance(item, Plot):
            raise TypeError(f"a figure returns a Plot, a list of them or None, not {item!r}")
        found.append(item)
    return found


def _drawings(plots: list[Plot], taken: set[str]) -> list[Drawing]:
    from .style import as_png, as_svg, file_name, panel_boxes

    found = []
    for plot in plots:
        name = file_name(plot.name, taken)
        taken.add(name)
        shown = plot.pictures is None
        svg = as_svg(plot.figure, name, plot.alt) if shown else Markup("")
        boxes = panel_boxes(plot.figure) if shown else []
        drawing = Drawing(
            name,
            plot.title,
            plot.caption,
            plot.alt,
            plot.group,
            svg,
            as_png(plot.figure),
            boxes,
            plot.pictures,
            plot.twin,
        )
        found.append(drawing)
    return found
