"""`ld3-dist show`: a resolved experiment and its cost, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer
from rich.table import Table
from rich.text import Text

from ..core.errors import InputError
from .console import console, say, warn

if TYPE_CHECKING:
    from ..experiment import Experiment, Plan

ExperimentFile = Annotated[
    Path,
    typer.Argument(help="YAML of the experiment; experiments/quickstart.yaml is a commented one."),
]


class Shown(TypedDict):
    """The JSON of `show`.

    fingerprint: null while weights are absent.
    settings: the resolved experiment.
    cells: each with its model, solver, nfe, steps, trials, and members of a trial.
    cost: network evaluations of one sample, by stage.
    absent: what is not there yet, and why.
    growth: null without --output: the folder; by kind of work what is asked, there and missing; and
        the number of rows that are left out.
    """

    name: str
    fingerprint: str | None
    settings: dict[str, Any]
    cells: list[dict[str, Any]]
    cost: dict[str, int]
    absent: list[str]
    growth: dict[str, Any] | None


def show(
    experiment: ExperimentFile,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Also say what a sweep into this folder or URL would do, reuse and leave out.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the same as JSON, and nothing else.")
    ] = False,
) -> None:
    """Show a resolved experiment: its cells, trials and members, and what it costs.

    The cost is counted in network evaluations of one sample. Nothing is written, and no cluster is
    needed; where weights are not there yet, the rest is shown all the same.
    """
    from ..experiment import load_experiment
    from ..tasks.planning import plan_as_far_as_known
    from .display import print_growth

    plan, absent = plan_as_far_as_known(load_experiment(experiment))
    if not as_json:
        print_plan(plan, absent)
    if output is not None and absent:
        raise InputError(
            f"{output}: what is in it for this experiment cannot be told while weights are "
            f"missing: {'; '.join(absent)}"
        )
    if as_json:
        typer.echo(json.dumps(shown_as_json(plan, absent, output), indent=2, ensure_ascii=False))
    elif output is not None:
        print_growth(plan, output, console)


def default_output(settings: Experiment) -> str:
    """The folder of a sweep for which none is given."""
    return f"runs/{settings.name}"


def print_plan(plan: Plan, absent: list[str]) -> None:
    """Print settings, cells, learning and cost."""
    import yaml

    from ..experiment.cost import cost_of
    from .display import print_learning

    settings = plan.experiment
    fingerprint = "unknown until the weights are there" if absent else plan.fingerprint
    resolved = settings.model_dump(mode="json", exclude_none=True)
    say(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    title = f"{settings.name}: {len(plan.cells)} cells, fingerprint {fingerprint}"
    table = Table(title=Text(title))
    for column in ("cell", "steps", "trials", "members each"):
        table.add_column(column, justify="left" if column == "cell" else "right")
    for cell in cells_of(plan):
        table.add_row(*(Text(str(cell[key])) for key in ("cell", "steps", "trials", "members")))
    console.print(table)
    print_learning(plan, console)
    for reason in absent:
        warn("Not there yet", reason)
    cost = cost_of(plan)
    parts = ", ".join(f"{stage} {count:,}" for stage, count in cost.items())
    say(f"Network evaluations (of one sample): {parts}; all {sum(cost.values()):,}")


def cells_of(plan: Plan) -> list[dict[str, Any]]:
    """Each cell with its steps, its trials and the members of each trial."""
    found = []
    for cell in plan.cells:
        points = plan.points_of(cell)
        found.append(
            {
                "cell": cell.id,
                "model": cell.model.label,
                "solver": cell.solver,
                "nfe": cell.nfe,
                "steps": cell.steps,
                "trials": len(points) * plan.experiment.search.rounds,
                "members": len(plan.trial(cell, points[0]).members),
            }
        )
    return found


def shown_as_json(plan: Plan, absent: list[str], output: str | None) -> Shown:
    """Everything that `show` prints, for programs."""
    from ..experiment.cost import cost_of
    from .display import growth_in

    growth = None
    if output is not None:
        url, found = growth_in(plan, output)
        kinds = {count.name: asdict(count) | {"missing": count.missing} for count in found.counts}
        for count in kinds.values():
            del count["name"]
        growth = {"folder": url, "counts": kinds, "left_out": found.left_out}
    return {
        "name": plan.experiment.name,
        "fingerprint": None if absent else plan.fingerprint,
        "settings": plan.experiment.model_dump(mode="json", exclude_none=True),
        "cells": cells_of(plan),
        "cost": cost_of(plan),
        "absent": absent,
        "growth": growth,
    }
