"""`ld3-dist compare`: two sweeps, what differs in them, and which is better."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from .console import console, say


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Output folder (or URL) of a sweep.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Output folder (or URL) of another.")],
    by: Annotated[
        str, typer.Option(help="Columns that make one row of the table, e.g. solver,nfe.")
    ] = "cell",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as JSON, and nothing else.")
    ] = False,
) -> None:
    """Compare the best schedules of two sweeps on fresh samples, cell by cell.

    Says what differs in their settings. Where the samples are the same, they are compared in pairs;
    else that is said. A ratio below 1 means that B is nearer to the teacher.
    """
    from ..report.compare import compare_sweeps

    names = [name.strip() for name in by.split(",") if name.strip()]
    found = compare_sweeps(a, b, names or ["cell"])
    if as_json:
        typer.echo(json.dumps(_plain(asdict(found)), indent=2))
        return
    say(f"A: {found.a}\nB: {found.b}")
    for name, first, second in found.settings:
        say(f"  {name}: {_shown(first)} in A, {_shown(second)} in B")
    if not found.settings:
        say("  no setting differs")
    table = Table()
    for name in (*found.rows[0].group, "cells", "loss A", "loss B", "B / A", "95 %", "better", ""):
        table.add_column(Text(name))
    for row in found.rows:
        interval = "" if math.isnan(row.low) else f"{row.low:.3g} … {row.high:.3g}"
        better = "" if math.isnan(row.p_improvement) else f"{row.p_improvement:.0%}"
        cells = [*map(str, row.group.values()), str(row.cells), f"{row.loss_a:.3g}"]
        ratio = "" if math.isnan(row.ratio) else f"{row.ratio:.3g}"
        cells += [f"{row.loss_b:.3g}", ratio, interval, better, row.how]
        table.add_row(*map(Text, cells))
    console.print(table)
    for why in dict.fromkeys(row.why for row in found.rows if row.why):
        say(f"Not paired: {why}")
    for name, cells in (("A", found.only_a), ("B", found.only_b)):
        if cells:
            say(f"Only in {name}: {', '.join(cells)}")
    say("better: the share of samples on which B is nearer to the teacher than A.")


def _shown(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(value: Any) -> Any:
    """The same with null for numbers that are not finite, as JSON has none."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
