"""The checklist as text on a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

from rich.console import Console
from rich.markup import escape

from .check import Check

MARKS = {
    "ok": "[green]ok     [/green]",
    "note": "[yellow]note   [/yellow]",
    "missing": "[red]missing[/red]",
}


def print_checks(checks: Iterable[Check], console: Console) -> int:
    """Print every check as it comes, under the heading of its area.

    Returns the number of checks with the status "missing".
    """
    area, missing, seen = "", 0, 0
    for check in checks:
        if check.area != area:
            area = check.area
            console.print(f"[bold]{escape(area)}[/bold]")
        mark, seen = MARKS[check.status], seen + 1
        console.print(
            f"  {mark} {escape(check.name)}: {escape(check.detail)}",
            highlight=False,
            soft_wrap=True,
        )
        if check.remedy and check.status != "ok":
            console.print(f"          -> {escape(check.remedy)}", highlight=False, soft_wrap=True)
        missing += check.status == "missing"
    verdict = (
        f"[red]{missing} of {seen} checks failed[/red]"
        if missing
        else f"[green]all {seen} checks passed[/green]"
    )
    console.print(verdict, highlight=False)
    return missing


class Checked(TypedDict):
    """The JSON of `doctor`.

    experiment: its name.
    missing: number of checks with the status "missing".
    checks: each with its area, name, status (ok, note or missing), detail and remedy.
    """

    experiment: str
    missing: int
    checks: list[dict[str, Any]]


def checks_as_json(experiment: str, checks: Sequence[Check]) -> Checked:
    """The checks for programs."""
    missing = sum(check.status == "missing" for check in checks)
    return {"experiment": experiment, "missing": missing, "checks": [asdict(c) for c in checks]}
