"""`ld3-dist merge`: several output folders as one."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import say


def merge(
    folders: Annotated[list[str], typer.Argument(help="Output folders (or URLs) of sweeps.")],
    output: Annotated[str, typer.Option("--output", "-o", help="New folder or URL to write.")],
) -> None:
    """Merge output folders into a new one: rows, scores, schedules, pairs, and what they ask for.

    The folders stay as they are. A sweep can go on in the new one. Interrupted, the same command
    goes on.
    """
    from ..store.merging import merge as merge_folders
    from ..store.opening import open_places, open_storage

    for line in merge_folders(open_places(folders), open_storage(output)):
        say(line)
    say(f"Merged: {output}")
