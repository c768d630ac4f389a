"""What a sweep shows: how it learns; while it runs, bars on a terminal and lines elsewhere; at its
end, a table.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from ..cluster.sweep import Event
    from ..experiment import Plan

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
        SpinnerColumn(),
        TextColumn("{task.description:<15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as progress:
        bars = {}
        for event in events:
            if event.stage not in bars:
                bars[event.stage] = progress.add_task(
                    STAGES[event.stage], total=event.total, state=""
                )
            finished = event.done + event.failed >= event.total
            state = describe(event)
            if event.gain is None and not finished:
                state = state or "starting workers" if event.done == 0 else state
            progress.update(bars[event.stage], completed=event.done, total=event.total, state=state)
            if event.message:
                progress.console.print(
                    event.message,
                    highlight=False,
                    markup=False,
                    style="yellow" if "failed" in event.message else "dim",
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


def print_learning(plan: Plan, console: Console) -> None:
    """How the trials of a plan learn, once a preset: the resolved values of what is not searched."""
    search = plan.experiment.search
    configs = [plan.trial(plan.cells[0], point).config for point in plan.grid_points()]
    for config in {config.procedure: config for config in reversed(configs)}.values():
        values = {
            k: v
            for k, v in asdict(config).items()
            if k not in ("procedure", "seed", *search.grid, *search.optuna)
        }
        text = ", ".join(f"{key} {value}" for key, value in values.items())
        console.print(
            f"Learning, procedure {config.procedure}: {text}", highlight=False, soft_wrap=True
        )


SUMMARY = {
    "cell": "cell",
    "baseline": "best grid",
    "baseline_loss": "its loss",
    "loss": "learned",
    "gain": "gain",
    "eval_gain": "fresh gain",
    "baseline_fid": "FID grid",
    "fid": "FID learned",
    "teacher_fid": "FID teacher",
    "gamma": "gamma",
}
"""Columns of the summary that a terminal shows, and their headings; the report has all of them."""


def print_summary(place: str, console: Console) -> list[str]:
    """The summary table of a sweep's results, as far as it fits; the cells where nothing that was
    learned is usable.
    """
    from ..report import read_sweep_tables, summary_table

    results = read_sweep_tables(place)
    frame: Any = summary_table(results.results, results.evaluations)
    table = Table(
        caption="losses: held-out distance to the teacher; gain: best grid's over learned",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    texts = [
        [_cell_text(name, value) for name, value in row.items()]
        for row in frame[list(SUMMARY)].to_dict(orient="records")
    ]
    shown = console if console.is_terminal else Console(width=max(console.width, 140))
    room = shown.width
    for i, (name, heading) in enumerate(SUMMARY.items()):
        width = max([len(row[i]) for row in texts] + [len(word) for word in heading.split()])
        room -= width + 3
        if room < 0:  # the report has the columns that do not fit
            texts = [row[:i] for row in texts]
            break
        table.add_column(
            heading, justify="left" if name in ("cell", "baseline") else "right", min_width=width
        )
    for row in texts:
        table.add_row(*row)
    shown.print(table)
    lost = [
        str(row["cell"])
        for row in frame.to_dict(orient="records")
        if row["learned"] and not row["ok"]
    ]
    for cell in lost:
        shown.print(
            f"{cell}: every learned schedule diverged, collapsed or failed; rows/ say which and "
            f"why",
            style="yellow",
        )
    return lost


def _cell_text(name: object, value: object) -> str:
    if not isinstance(value, float | int):
        return str(value) if isinstance(value, str) else "-"
    if value != value:  # not measured
        return "-"
    return f"{value:.2f}x" if "gain" in str(name) else f"{value:.3g}"
