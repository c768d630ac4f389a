"""`ld3-dist schema`: the JSON Schemas of the files that people write and read."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..core.errors import unknown

KINDS = ("experiment", "schedule")


def schema(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="Kind of file: experiment or schedule.")
    ] = "experiment",
) -> None:
    """Print the JSON Schema of an experiment's YAML, or of a schedule file.

    Editors complete and check a YAML whose first line is
    `# yaml-language-server: $schema=FILE`, FILE being what this prints.
    """
    if kind not in KINDS:
        raise unknown("kind of file", kind, KINDS)
    if kind == "experiment":
        from ..experiment.schema import as_json

        typer.echo(as_json(), nl=False)
    else:
        from ..schedule.schema import schema as of_schedules

        typer.echo(json.dumps(of_schedules(), indent=2))
