"""What a sweep shows while it runs: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from .cluster.sweep import Event

STAGES = {
    "teach": "teacher shards", "baselines": "baselines", "search": "trials",
    "evaluate": "sample parts", "score": "scores",
}  # fmt: skip
EVERY = 5.0
"""Seconds between two plain lines of the same stage."""


def describe(event: Event) -> str:
    """The state of a stage in words."""
    parts = [f"{event.running} running"] if event.running else []
    parts += [f"{event.failed} failed"] if event.failed else []
    parts += [f"best gain {event.gain:.1f}x"] if event.gain else []
    return ", ".join(parts)


def show(events: Iterable[Event], console: Console) -> None:
    """Consume the events of a sweep and show them."""
    if console.is_terminal:
        _bars(events, console)
    else:
        _lines(events, console)


def _bars(events: Iterable[Event], console: Console) -> None:
    columns = (
        SpinnerColumn(), TextColumn("{task.description:<15}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[state]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bars = {}
        for event in events:
            if event.stage not in bars:
                bars[event.stage] = progress.add_task(STAGES[event.stage], total=event.total, state="")
            finished = event.done + event.failed >= event.total
            state = describe(event)
            if event.gain is None and not finished:
                state = state or "starting workers" if event.done == 0 else state
            progress.update(bars[event.stage], completed=event.done, total=event.total, state=state)
            if event.message:
                progress.console.print(
                    event.message, highlight=False, markup=False, style="yellow" if "failed" in event.message else "dim"
                )


def _lines(events: Iterable[Event], console: Console) -> None:
    last: dict[str, float] = {}
    for event in events:
        finished = event.done + event.failed >= event.total
        if event.message or finished or time.monotonic() - last.get(event.stage, 0.0) > EVERY:
            last[event.stage] = time.monotonic()
            tail = f"  {event.message}" if event.message else ""
            state = f" ({describe(event)})" if describe(event) else ""
            console.print(
                f"{STAGES[event.stage]}: {event.done}/{event.total}{state}{tail}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
