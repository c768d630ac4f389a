"""The terminal's view of a sweep: how it learns, how far it is, and the table at its end.

While a sweep runs, a terminal shows bars; a file or a pipe gets lines. Names and messages are
printed as they are: nothing in them is markup of the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
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
from rich.text import Text

from .console import duration

if TYPE_CHECKING:
    from ..cluster.events import Event
    from ..cluster.growth import Growth
    from ..experiment import Plan

STAGES = {
    "teach": "teacher shards", "baselines": "baselines", "search": "trials",
    "evaluate": "sample parts", "score": "scores",
}  # fmt: skip
EVERY = 5.0
"""Seconds between two plain lines of the same stage."""

MOST_IMPORTANT = 1
"""Columns of the summary up to this rank are shown on the narrowest terminal."""


def describe(event: Event) -> str:
    """The state of a stage in words."""
    inside = f" ({event.inside / event.running:.0%} through)" if event.running else ""
    parts = [f"{event.running} running{inside if event.inside else ''}"] if event.running else []
    parts += [f"{event.failed} failed"] if event.failed else []
    parts += [f"best held-out gain {event.gain:.1f}x"] if event.gain else []
    parts += [f"about {duration(event.left)} left"] if event.left else []
    return ", ".join(parts)


def message_of(event: Event) -> str:
    """The event's line for the log, on one line whatever is in it; empty if it has none."""
    from ..report.formats import visible  # in a function: it loads pandas

    return visible(event.message)


def show(events: Iterable[Event], console: Console) -> None:
    """Show the events of a sweep as they come."""
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
            work = event.done + event.inside
            progress.update(bars[event.stage], completed=work, total=event.total, state=state)
            if event.message:
                progress.console.print(
                    message_of(event),
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
            tail = f"  {message_of(event)}" if event.message else ""
            words = describe(event)
            state = f" ({words})" if words else ""
            console.print(
                f"{STAGES[event.stage]}: {event.done}/{event.total}{state}{tail}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def print_learning(plan: Plan, console: Console) -> None:
    """Print the settings of learning that are not searched, once per procedure."""
    axes = plan.experiment.axes
    configs = [plan.trial(plan.cells[0], point).config for point in plan.points()]
    for config in {config.procedure: config for config in reversed(configs)}.values():
        values = {k: v for k, v in asdict(config).items() if k not in ("procedure", "seed", *axes)}
        text = ", ".join(f"{key} {value}" for key, value in values.items())
        line = f"Learning, procedure {config.procedure}: {text}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_growth(plan: Plan, output: str, console: Console) -> None:
    """Print what a sweep into a folder would do, reuse and leave out.

    Raises InputError for a folder in which a sweep cannot go on.
    """
    url, growth = growth_in(plan, output)
    table = Table(title=Text(f"In {url}"))
    for column in ("", "asked for", "to do", "reused"):
        table.add_column(column, justify="right" if column else "left")
    for count in growth.counts:
        table.add_row(count.name, *(f"{n:,}" for n in (count.asked, count.missing, count.there)))
    console.print(table)
    if growth.left_out:
        rows = f"{growth.left_out:,} row{'s' if growth.left_out > 1 else ''}"
        line = f"{rows} of earlier versions of the experiment stay, and are left out of the report"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def growth_in(plan: Plan, output: str) -> tuple[str, Growth]:
    """The URL of a folder, and the work that a plan finds to do in it.

    Raises InputError for a folder in which a sweep cannot go on.
    """
    from ..cluster.growth import growth_of
    from ..cluster.output_folder import check_claim, with_names_of
    from ..store.opening import open_storage

    storage = open_storage(output)
    check_claim(storage)
    return storage.url, growth_of(with_names_of(storage, plan), storage)


NARROWEST = 160
"""Letters per line of a summary that goes into a file or a pipe."""

ASCII = {ord("×"): "x", ord("–"): "-", ord("±"): "+-", ord("γ"): "gamma"}
"""Signs of the summary for terminals that cannot write them."""


@dataclass(frozen=True)
class _Printed:
    """A column as a terminal writes it: heading and values, a value per cell of the sweep."""

    heading: str
    texts: list[str]
    words: bool
    rank: int

    def width(self, whole: bool) -> int:
        """Letters of its longest line; whole: the heading is on one line, not a word per line."""
        heading = [self.heading] if whole else self.heading.split()
        return max(cell_len(text) for text in (*heading, *self.texts))


def print_summary(place: str, console: Console) -> list[str]:
    """Print the summary of a sweep's results, with as many columns as the terminal has room for.

    Returns the cells where learned schedules exist and none of them came out ok.
    """
    from ..report import read_sweep_tables, summary_table
    from ..report.columns import shown
    from ..report.formats import visible
    from ..store.frames import records

    tables = read_sweep_tables(place)
    summary = summary_table(tables.results, tables.evaluations)
    rows = records(summary)
    if not console.is_terminal:
        console = Console(width=max(console.width, NARROWEST), file=console.file)
    columns = [
        _Printed(
            _writable(visible(known.heading), console),
            [_writable(known.text(row), console) for row in rows],
            known.words,
            known.rank,
        )
        for known in shown(summary, "terminal")
    ]
    console.print(_table(_fitting(columns, console.width), console.width))
    lost = [str(row["cell"]) for row in rows if row["learned"] and not row["ok"]]
    for cell in lost:
        text = (
            f"{visible(cell)}: every learned schedule diverged, collapsed or failed; rows/ say "
            f"which and why"
        )
        console.print(Text(_writable(text, console)), style="yellow", soft_wrap=True)
    return lost


def _fitting(columns: list[_Printed], room: int) -> list[_Printed]:
    """The columns that fit into a line of `room` letters; the least important ones go first."""
    kept = list(columns)
    while _line_width(kept) > room:
        last = max(kept, key=lambda column: column.rank)
        if last.rank <= MOST_IMPORTANT:
            break
        kept.remove(last)
    return kept


def _line_width(columns: list[_Printed], whole: bool = False) -> int:
    """Letters of one line: beside a column stand two spaces and a divider, less at the edges."""
    return sum(column.width(whole) + 3 for column in columns) - 1


def _table(columns: list[_Printed], room: int) -> Table:
    """The columns as a table of at most `room` letters.

    A number is never folded: headings are, word by word, and names where that is not enough.
    """
    whole = _line_width(columns, whole=True) <= room
    folded = _line_width(columns) > room
    fresh = any(column.heading == "gain" for column in columns)
    place = "on fresh samples" if fresh else "on the held-out pairs that also selected"
    caption = f"losses: distance to the teacher {place}; gain: best grid's over learned"
    table = Table(caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            Text(column.heading),
            justify="left" if column.words else "right",
            width=None if folded and column.words else column.width(whole),
            overflow="fold",
        )
    for texts in zip(*(column.texts for column in columns), strict=True):
        table.add_row(*(Text(text) for text in texts))
    return table


def _writable(text: str, console: Console) -> str:
    """The text in letters that the terminal can write."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        plain = text.translate(ASCII).encode(console.encoding, "backslashreplace")
        return plain.decode(console.encoding)
    return text
