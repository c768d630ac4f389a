"""`ld3-dist table`: a score of many schedules as a table for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import InputError
from .console import say


def table(
    folders: Annotated[
        list[str], typer.Argument(help="Output folders (or URLs) of sweeps; read together.")
    ],
    form: Annotated[str, typer.Option("--format", help="latex, csv or markdown.")] = "markdown",
    rows: Annotated[
        str, typer.Option(help="Columns that name the rows; `method` sets grids beside learned.")
    ] = "solver",
    columns: Annotated[str, typer.Option(help="Columns that name the columns, e.g. nfe.")] = "nfe",
    value: Annotated[str, typer.Option(help="The score, e.g. fid, eval_loss, gain.")] = "fid",
    which: Annotated[
        str,
        typer.Option(help="best (schedules of their cells), learned (all of them) or all."),
    ] = "best",
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only rows with these values, e.g. model=digits or nfe=4,6."),
    ] = None,
    mean: Annotated[
        str, typer.Option(help="arithmetic or geometric: of the results in a cell of the table.")
    ] = "arithmetic",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; stdout if not given.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Also draw the critical differences of the ranks (.png, .pdf, .svg)."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also rows that the current experiment asks not for.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Print a score as a table: best in bold, interval or spread beside it, and mean ranks."""
    from ..report.crosstab import chosen, crosstab, joined, write_table
    from ..report.only import only
    from ..store.outputs import check_output, write_output
    from ..store.results import load_results

    heads, names = _listed("--columns", columns, "nfe"), _listed("--rows", rows, "solver")
    if out is not None:
        check_output(out, "file", force, option="--out")
    if figure is not None:
        _check_figure(figure, force)
    results = only(load_results(*folders, all=everything), where or [])
    text = write_table(crosstab(results, names, heads, value, which, mean), form)
    if figure is not None:
        from ..report.figures.differences import draw_differences
        from ..report.ranks import differences

        named = joined(names)
        found = differences(chosen(results, names, heads, value, which), named, value)
        say(f"Figure: {draw_differences(found, figure, f'{value} by {named}')}")
    if out is None:
        typer.echo(text, nl=False)
    else:
        say(f"Written: {write_output(out, text)}")


def _listed(option: str, given: str, example: str) -> list[str]:
    """Names between commas. Raises InputError where there is none."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise InputError(f"{option} is empty; name a column of the results, e.g. {example}")
    return names


def _check_figure(figure: Path, force: bool) -> None:
    from ..report.figures.differences import FORMATS
    from ..store.outputs import check_output

    if figure.suffix not in FORMATS:
        raise InputError(f"--figure {figure}: end its name with {', '.join(FORMATS)}")
    check_output(figure, "file", force, option="--figure")
