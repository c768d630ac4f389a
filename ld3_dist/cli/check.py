"""`ld3-dist check`: what is wrong in the output folder of a sweep."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import Annotated

import typer

from .console import say


def check(
    results: Annotated[str, typer.Argument(help="Output folder (or URL) of a sweep.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON, and nothing else.")
    ] = False,
) -> None:
    """Verify everything in the output folder of a sweep, and say what the next sweep makes again.

    Reads only. Exits with 0 if all is well, 1 if something is wrong, 2 if there is no sweep.
    """
    from ..store.opening import open_storage
    from ..tasks.check import check as findings_of

    storage = open_storage(results)
    findings = []
    with _quiet(logging.getLogger("ld3_dist")):
        for finding in findings_of(storage):
            findings.append(finding)
            if not as_json:
                say(f"{finding.file}: {finding.problem}; {finding.remedy}")
    if as_json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        typer.echo(json.dumps({"folder": storage.url, "findings": listed}, indent=2))
    else:
        count = len(findings)
        what = "everything is well" if not count else f"{count} finding{'s' * (count > 1)}"
        say(f"{storage.url}: {what}")
    if findings:
        raise typer.Exit(1)


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep the warnings of readers back: the findings name each unreadable file, once."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
