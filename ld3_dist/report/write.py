"""From the folder of a sweep to its report: index.html, summary.md and figures/*.png."""

from __future__ import annotations

# A selection from a frame is a union of types to pandas' own annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
import os
import re
from dataclasses import dataclass

import pandas as pd

from ..store.storage import Storage, open_storage
from .figures.curves import convergence_plot, gamma_plot
from .figures.grids import grids_plot
from .figures.quality import FRECHET, LOSS, quality_plot
from .figures.samples import samples_plots
from .figures.style import Plot, as_png, styled
from .findings import broken_rows, findings, status_counts
from .page import Page, Section, html_page
from .summary import summary_table, teacher_scores
from .tables import SweepTables, read_sweep_tables
from .text import counted, headline, missing, table_markdown


@dataclass(frozen=True)
class ReportPaths:
    """Where the files of a report are: paths, or URLs."""

    html: str
    markdown: str
    figures: tuple[str, ...]


def write_report(
    results: str | os.PathLike[str] | Storage,
    output: str | os.PathLike[str] | Storage | None = None,
) -> ReportPaths:
    """Write the report of a sweep; the same tables give the same bytes.

    Args:
        results: the sweep's output folder or URL.
        output: where the report goes; the folder `report` of the results if not given.

    Raises:
        InputError: there are no results at that place, or they are of a newer format.
    """
    sweep = read_sweep_tables(results)
    out = sweep.storage.child("report") if output is None else open_storage(output)
    table = summary_table(sweep.results, sweep.evaluations)
    with styled():
        sections = [
            _section(sweep, table, str(model), i) for i, model in enumerate(table["model"].unique())
        ]
        plots = [plot for section in sections for plot in (*section.plots, *section.samples)]
        counts = status_counts(sweep.results)
        page = Page(
            sweep.name,
            headline(table),
            _facts(sweep, table),
            sections,
            findings(sweep, table),
            counts,
            broken_rows(sweep.results),
        )
        out.write_bytes("index.html", html_page(page).encode())
        out.write_bytes("summary.md", table_markdown(table).encode())
        names = [f"figures/{plot.name}.png" for plot in plots]
        for name, plot in zip(names, plots, strict=True):
            out.write_bytes(name, as_png(plot.figure))
    return ReportPaths(
        out.address("index.html"), out.address("summary.md"), tuple(map(out.address, names))
    )


def _section(sweep: SweepTables, table: pd.DataFrame, model: str, number: int) -> Section:
    frame = sweep.results[sweep.results["model"] == model]
    prefix = f"{_slug(model)}-{number}" if number else _slug(model)
    teachers = teacher_scores(sweep.evaluations)
    drawn: list[Plot | None] = [
        quality_plot(frame, LOSS, f"{prefix}-distance", teachers),
        quality_plot(frame, FRECHET, f"{prefix}-frechet", teachers),
        grids_plot(frame, f"{prefix}-grids", sweep.noise_of(frame)),
        gamma_plot(frame, f"{prefix}-gamma"),
        convergence_plot(frame, f"{prefix}-convergence"),
    ]
    plots = [plot for plot in drawn if plot is not None]
    rows = table[table["model"] == model].reset_index(drop=True)
    return Section(model, rows, plots, samples_plots(sweep, frame, f"{prefix}-samples"))


def _facts(sweep: SweepTables, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Header facts: what ran, with which versions, how much of it worked."""
    frame = sweep.results
    learned = frame[frame["kind"] == "learned"]
    ok = int((learned["status"] == "ok").sum())
    facts = [
        (
            "fingerprint",
            str(sweep.experiment.get("fingerprint") or _values(frame, "experiment")[:16]),
        ),
        ("cells", str(len(table))),
        ("learned schedules", f"{ok:,} ok, {len(learned) - ok:,} not ok"),
        ("hand-made grids", f"{int((frame['kind'] == 'baseline').sum()):,}"),
        ("network evaluations", f"{frame['network_evals'].sum():,}"),
        ("distance", _values(frame, "distance")),
        ("features", _values(frame, "extractor")),
        ("samples evaluated", _values(frame, "samples")),
        ("ld3_dist", _values(frame, "version")),
        ("PyTorch", _values(frame, "torch_version")),
        (
            "commit",
            ", ".join(commit[:10] for commit in sorted(frame["git_commit"].dropna().unique())[:3]),
        ),
        ("device", _values(frame, "device")),
        (
            "machines",
            counted(frame["host"].nunique(), "machine") if frame["host"].notna().any() else "",
        ),
    ]
    return [(name, value) for name, value in facts if value]


def _values(frame: pd.DataFrame, column: str, most: int = 4) -> str:
    """The different values of a column, in order, as text."""
    values = sorted(str(value) for value in frame[column].unique() if not missing(value))
    return ", ".join(values[:most]) + (
        f" and {len(values) - most} more" if len(values) > most else ""
    )


def _slug(model: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40] or "model"
