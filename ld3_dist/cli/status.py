"""`ld3-dist status`: how far a sweep is, from any machine that sees its output folder."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from .console import console, duration, say

if TYPE_CHECKING:
    from ..tasks.status import Driver, Gain, Status

EVERY = 10.0
"""Seconds between two looks of --watch, at least."""

SHARE = 20.0
"""A look is at most this fraction of the time: one of 2 s is followed by 40 s of rest."""


def status(
    results: Annotated[str, typer.Argument(help="Output folder (or URL) of a sweep.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, until nothing is left.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the state as JSON, and nothing else.")
    ] = False,
) -> None:
    """Say how far a sweep is: done, running, failed, left, time left, gains, last failures.

    Reads files only: it needs no cluster and works on any machine that sees the folder. Exits with
    0 whatever the state is, 2 if there is no sweep.
    """
    from ..store.opening import open_storage
    from ..tasks.status import status_of

    storage = open_storage(results)
    try:
        while True:
            clock = time.monotonic()
            found = status_of(storage)
            if as_json:
                typer.echo(json.dumps(found.as_json(), indent=None if watch else 2))
            else:
                if watch and console.is_terminal:
                    console.clear()
                print_status(found)
            if not watch or found.finished:
                return
            time.sleep(max(EVERY, SHARE * (time.monotonic() - clock)))
    except KeyboardInterrupt:
        return


def say_unfinished(results: str) -> None:
    """Say so if a sweep is not finished: its summary and report are of what there is so far."""
    from ..store.opening import open_storage
    from ..tasks.status import status_of

    found = status_of(open_storage(results))
    if found.finished or (found.total is None and not found.drivers):
        return
    of = "" if found.total is None else f" of {found.total:,}"
    failed = f", {found.failed:,} failed" if found.failed else ""
    more = "a driver is at work" if found.drivers else "no driver is at work"
    text = (
        f"Unfinished: {found.done:,}{of} trials done{failed}, and {more}. What follows is of these"
    )
    say(f"{text} alone.", "yellow")


def print_status(found: Status) -> None:
    """Print a state: a line of counts, the drivers, gains per cell, and the last failures."""
    of = "" if found.total is None else f" of {found.total:,}"
    left = "an unknown number left" if found.left is None else f"{found.left:,} left"
    parts = [f"{found.done:,}{of} trials done", f"{found.running:,} running"]
    parts += [f"{found.failed:,} failed", left]
    say(f"{found.name or 'sweep'} in {found.folder}: {', '.join(parts)}")
    say(f"  {pace(found)}")
    for driver in found.drivers:
        say(f"  {driver_line(driver)}")
    if not found.drivers:
        end = "; it is finished" if found.left == 0 else ""
        say(f"  no driver is at work in this folder{end}")
    unwell = {name: n for name, n in found.statuses.items() if name != "ok"}
    if unwell:
        counts = ", ".join(f"{n:,} {name}" for name, n in unwell.items())
        say(f"  learned schedules that did not come out ok: {counts}", "yellow")
    if found.signs:
        counts = ", ".join(f"{n:,} {sign}" for sign, n in found.signs.items())
        say(f"  signs of failure among learned schedules: {counts}", "yellow")
    if found.gains:
        console.print(gains_table(found.gains))
    if found.failures:
        say(f"{found.failures:,} attempts failed; the last of them:", "yellow")
        for failure in found.last_failures:
            say(f"  {failure_line(failure)}")


def pace(found: Status) -> str:
    """The rate and the time left, in words."""
    rate = "no rate yet" if found.rate is None else f"{found.rate:,.0f} trials an hour"
    if found.rate is not None and found.rate >= 7200:
        rate = f"{found.rate / 3600:,.1f} trials a second"
    if found.seconds_left is None:
        return rate
    return f"{rate}, about {duration(found.seconds_left)} left"


def driver_line(driver: Driver) -> str:
    """A driver and what it does."""
    shard = f", shard {driver.shard}" if driver.shard else ""
    doing = [
        f"{stage} {counts.get('done', 0)}/{counts.get('total', 0)}"
        for stage, counts in driver.stages.items()
    ]
    what = ", ".join(doing) or "starting"
    seen = f"last sign of life {driver.silence:.0f} s ago"
    return f"driver {driver.pid} on {driver.host}{shard}: {what} ({seen})"


def gains_table(gains: list[Gain]) -> Table:
    """The best gain of each cell with its interval."""
    table = Table(caption="gain: the best hand-made grid's loss over that of the best schedule")
    for column in ("cell", "gain", "95 % interval", "measured on"):
        table.add_column(column, justify="left" if column == "cell" else "right")
    for gain in gains:
        value = "-" if gain.gain is None else f"{gain.gain:.2f}x"
        known = gain.low is not None and gain.high is not None
        interval = f"{gain.low:.2f} to {gain.high:.2f}" if known else "-"
        where = "fresh samples" if gain.fresh else "held-out pairs"
        table.add_row(*map(Text, (gain.cell, value, interval, where)))
    return table


def failure_line(failure: dict[str, Any]) -> str:
    """A failed attempt on one line."""
    from ..report.formats import visible

    text = (
        f"{failure['time']}  {failure['stage']} {failure['item']}, attempt {failure['attempt']} on "
        f"{failure['node']}: {failure['reason']}"
    )
    return visible(text)
