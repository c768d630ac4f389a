"""Writing the report of a sweep: index.html, summary.md and figures/*.png."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..core.errors import InputError
from ..store.frames import column, groups, records, varies, where
from ..store.opening import open_storage
from ..store.storage import Storage
from .ablation import ablation_table
from .about import facts, methods, settings_yaml
from .figures import FigureData, FigureFunction
from .figures import figures as registered
from .figures.draw import Drawn, draw
from .files import replace_files
from .findings import broken_rows, findings, status_counts, unfinished
from .headline import headline
from .interactions import interaction_table
from .markdown import ablation_markdown, table_markdown
from .page import Page, Section, ablation_view, blocks_of, broken_view, html_page, summary_view
from .page_data import page_data
from .summary import summary_table, teacher_scores
from .tables import SweepTables, read_sweep_tables

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report, as paths or URLs. warnings: what could not be drawn, and why."""

    html: str
    markdown: str
    figures: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def write_report(
    results: str | os.PathLike[str] | Storage,
    output: str | os.PathLike[str] | Storage | None = None,
    figures: Sequence[str] | None = None,
) -> ReportPaths:
    """Write the report of a sweep; the same tables give the same bytes.

    Args:
        results: the sweep's output folder or URL.
        output: where the report goes; the folder `report` of the results if not given.
        figures: names of registered figures, or `python:FILE.py:NAME`, in the order in which they
            are shown. If not given, those that the experiment's settings name, else all that are
            registered.

    A figure that fails is named on the page and in the log, and left out. What an earlier report
    wrote there and this one has not is removed.

    Raises:
        InputError: there are no results at that place, they are of a newer format, or `figures`
            holds a name that is not known.
    """
    drawn = Drawn()
    chosen = None if figures is None else {name: registered.get(name) for name in figures}
    sweep = read_sweep_tables(results)
    if chosen is None:
        chosen = _of_settings(sweep, drawn)
    out = sweep.storage.child("report") if output is None else open_storage(output)
    table = summary_table(sweep.results, sweep.evaluations)
    ablation, interactions, told = _ablation(sweep)
    parts = _parts(sweep, table)
    first = {model: i for i, (model, _) in reversed(list(enumerate(parts)))}
    sections = []
    for i, (model, rows) in enumerate(parts):
        compared = [_of_model(one, model, first[model] == i) for one in (ablation, interactions)]
        sections.append(_section(sweep, rows, i, chosen, drawn, *compared))
    page = Page(
        sweep.name,
        headline(table),
        facts(sweep, len(table)),
        sections,
        [*findings(sweep, table), *told, *drawn.warnings],
        status_counts(sweep.results),
        broken_view(broken_rows(sweep.results)),
        ablation_view(ablation),
        unfinished(sweep),
        methods(sweep),
        settings_yaml(sweep),
        page_data(
            sweep, table, {line: i for i, (_, rows) in enumerate(parts) for line in rows.index}
        ),
    )
    replace_files(out, _files(page, table, ablation, interactions, drawn))
    names = [out.address(f"figures/{drawing.name}.png") for drawing in drawn.drawings]
    return ReportPaths(
        out.address("index.html"), out.address("summary.md"), tuple(names), tuple(drawn.warnings)
    )


def _files(
    page: Page,
    table: pd.DataFrame,
    ablation: pd.DataFrame,
    interactions: pd.DataFrame,
    drawn: Drawn,
) -> dict[str, bytes]:
    """The files of a report by name; empty tables have none."""
    summary = table_markdown(table) + ablation_markdown(ablation)
    files = {"index.html": html_page(page).encode(), "summary.md": summary.encode()}
    for name, made in (("ablation", ablation), ("interactions", interactions)):
        if len(made):
            files[f"{name}.csv"] = made.to_csv(index=False).encode()
    return files | {f"figures/{drawing.name}.png": drawing.png for drawing in drawn.drawings}


def _of_settings(sweep: SweepTables, drawn: Drawn) -> dict[str, FigureFunction]:
    """The figures that the settings name, else all; a name that is not known is warned about.

    The settings may name a file of another machine, and that must not cost the report.
    """
    found = {}
    for name in registered if sweep.figures is None else sweep.figures:
        try:
            found[name] = registered.get(name)
        except InputError as error:
            drawn.warnings.append(f"A figure could not be drawn: {error}.")
            log.warning("a figure could not be drawn: %s", error)
    return found


def _parts(sweep: SweepTables, table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The models with their rows, of each model those in the experiment's own distance first."""
    found = groups(table, ["model", "distance"], sort=False, nulls=True)
    models = list(dict.fromkeys(model for (model, _), _ in found))
    found.sort(key=lambda part: (models.index(part[0][0]), part[0][1] != sweep.distance))
    return [(model, rows) for (model, _), rows in found]


def _section(
    sweep: SweepTables,
    table: pd.DataFrame,
    index: int,
    figures: dict[str, FigureFunction],
    drawn: Drawn,
    ablation: pd.DataFrame,
    interactions: pd.DataFrame,
) -> Section:
    """The section of one model, and of one distance where the sweep learned in several."""
    model, distance = records(table.head(1))[0]["model"], column(table, "distance").iloc[0]
    several = varies(sweep.results, "distance")
    frame = where(sweep.results, column(sweep.results, "model") == model)
    title = model
    if several:
        frame = where(frame, column(frame, "distance") == distance)
        title = f"{model}, learned in {distance}"
    prefix = f"{_slug(model)}-{index}" if index else _slug(model)
    teachers = teacher_scores(sweep.evaluations)
    images = sweep.images if not several or distance == sweep.distance else _no_images
    data = FigureData(
        title,
        frame,
        teachers,
        sweep.noise_of(frame),
        prefix,
        images,
        ablation,
        sweep.importance,
        interactions,
    )
    return Section(title, summary_view(table), blocks_of(draw(figures, data, drawn)))


def _ablation(sweep: SweepTables) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The tables of an ablation and of its interactions, and a sentence where they could not be
    made.
    """
    try:
        return ablation_table(sweep), interaction_table(sweep), []
    except InputError as error:
        text = f"The ablation could not be read from the settings: {error}."
        log.warning("%s", text)
        return pd.DataFrame(), pd.DataFrame(), [text]


def _of_model(ablation: pd.DataFrame, model: str, first: bool) -> pd.DataFrame:
    """The part of an ablation about a model, in the first of the model's sections alone."""
    if ablation.empty or not first:
        return pd.DataFrame()
    return where(ablation, column(ablation, "model") == model)


def _no_images(cell: str) -> dict[str, Any]:
    """Sample images are kept of schedules in the experiment's own distance alone."""
    return {}


def _slug(model: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40] or "model"
