"""The end of a sweep: for each cell the file of its best schedule, and how to export it."""

from __future__ import annotations

import shlex
from typing import Any

from .console import console, say

MOST = 12
"""Cells that are named; the others are counted."""


def print_exports(place: str) -> None:
    """Name the schedule file of each cell's best schedule and the command that exports it."""
    from ..report.formats import visible
    from ..store.results import load_results
    from ..tasks.schedules import schedule_name

    frame: Any = load_results(place)
    best = frame[frame["best"]].drop_duplicates("cell")
    names = {str(row["cell"]): schedule_name(row["key"]) for _, row in best.iterrows()}
    if not names:
        return
    say("Best schedules:")
    for cell, name in list(names.items())[:MOST]:
        file = shlex.quote(f"{place}/{name}")
        say(f"  {visible(cell)}\n    ld3-dist export {file} --format sigmas")
    if len(names) > MOST:
        say(f"  and {len(names) - MOST} more cells: load_results({place!r}).query('best')['key']")
    console.print(
        "  (--format: sigmas, timesteps, comfyui, or diffusers, which alone loses nothing)",
        highlight=False,
    )
