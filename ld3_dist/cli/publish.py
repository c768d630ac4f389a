"""`ld3-dist publish`: what one uploads beside weights."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from ..core.errors import InputError
from .console import say


def publish(
    schedule: Annotated[str, typer.Argument(help="Schedule file (path or URL).")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write.")],
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the model, if its own card does not say it."),
    ] = None,
    nfe: Annotated[
        int | None,
        typer.Option(help="Network evaluations: publish the schedule of a curve at one number."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Write a folder to upload: the schedule, a model card with its numbers, and a picture.

    Nothing in it names a folder of this machine, and nothing is uploaded.
    """
    from ..integrations.publishing import check_folder
    from ..integrations.publishing import publish as write
    from ..report.figures.grids import schedule_picture
    from ..schedule.file import load_schedule

    name = re.sub(r"[^\w.-]+", "-", PurePosixPath(schedule).stem).strip("-.") or "schedule"
    if licence is not None and not re.fullmatch(r"[\w.+-]{1,60}", licence):
        raise InputError(f"--license {licence!r}: give one identifier, e.g. mit or openrail++")
    place = check_folder(to, name, schedule, force)
    given = load_schedule(schedule)
    given = given if nfe is None else given.at(nfe)
    for file in write(given, name, schedule_picture(given), place, licence):
        say(f"Written: {to / file}")
