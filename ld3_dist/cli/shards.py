"""`ld3-dist sweep --shard i/n`: one part of a sweep, as a job of an array runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..core.errors import InputError
from .console import say

if TYPE_CHECKING:
    from ..cluster.sweep import Sweep
    from ..store.part import Part

WHOLE = ("teach", "search", "evaluate")


def sweep_part(
    experiment: Path,
    output: str | None,
    address: str | None,
    shard: str,
    run: Callable[..., Sweep],
) -> None:
    """Do a part; if it is the last to end, evaluate and report as well.

    Args:
        run: runs stages of a sweep and shows them.

    Exits with 1 if something failed. Raises InputError for a shard that is not one of the n, and
    for the same shard, a whole sweep or another division at work in the folder.
    """
    from ..cluster import parts
    from ..store.lock import LockHeld
    from ..store.part import parse_part

    part = parse_part(shard)
    if address is not None:
        raise InputError(
            "--shard with --address: a shard runs on its own machine; on a Ray cluster one sweep "
            "without --shard uses all machines"
        )
    done = run(experiment, output, None, WHOLE[:2], part)
    assert done.lineage is not None
    left = parts.unfinished(done.storage, done.lineage.plan.fingerprint, part.count)
    if not left:
        try:
            run(experiment, output, None, WHOLE)
        except LockHeld:
            say("Another shard is evaluating, or about to end and evaluate.")
            return
    else:
        say(f"Shard {part} is done; {remaining(left)} not. {last_words(experiment, output)}")
    if done.failures:
        raise typer.Exit(1)


def remaining(left: list[Part]) -> str:
    """The shards without an end, in words."""
    names = ", ".join(str(part) for part in left[:5])
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return f"{names}{more} {'are' if len(left) > 1 else 'is'}"


def last_words(experiment: Path, output: str | None) -> str:
    """The end of a part's message: who evaluates."""
    place = f" --output {output}" if output else ""
    return (
        "The last shard to end evaluates and writes the report; by hand, with all missing work:\n"
        f"  ld3-dist sweep {experiment}{place}"
    )
