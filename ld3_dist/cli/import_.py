"""`ld3-dist import`: a schedule that others published, as a schedule file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import InputError
from .console import console, say


def import_schedule_file(
    source: Annotated[
        str, typer.Argument(help="List of sigmas (JSON or text), or a checkpoint file.")
    ],
    form: Annotated[str, typer.Option("--as", help="sigmas, comfyui, ays, dyweight or epd.")],
    model: Annotated[
        str,
        typer.Option(
            help="The model it is for: digits, digits-flow, fashion, edm:FILE, diffusers:FOLDER, "
            "analytic:NAME or python:FILE.py:NAME."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Schedule file to write (JSON).")],
    solver: Annotated[
        str | None,
        typer.Option(
            help="Solver whose table a list gets; ipndm-3 if not given. A checkpoint has its own."
        ),
    ] = None,
    nfe: Annotated[
        int | None,
        typer.Option(
            help="Network evaluations, if not those of the list: it is then interpolated linearly "
            "in log(sigma), as the authors of Align Your Steps recommend."
        ),
    ] = None,
    shift: Annotated[
        float | None,
        typer.Option(help="Shift of a flow model's grid, for a checkpoint that does not say it."),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Make a schedule file of a schedule that others published.

    Lists of noise levels (sigmas, ComfyUI, Align Your Steps) give the grid. Checkpoint files of
    DyWeight and EPD give grid, network times and coefficients; nothing in them is executed. The
    result runs like a learned schedule, and can stand beside one as a baseline (file:FILE).
    """
    from ..core.solver import make_solver
    from ..models import load_model
    from ..schedule.imports import CHECKPOINTS, import_schedule
    from ..store.outputs import check_output, write_output

    check_output(out, "file", force, option="--out", inputs={"the command": source})
    given: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    name = solver or "ipndm-3"
    if nfe is not None and not 1 <= nfe <= 1000:
        raise InputError(f"--nfe {nfe}: must be from 1 to 1000")
    if shift is not None and not 0 < shift < 1e4:
        raise InputError(f"--shift {shift:g}: must be above 0; 1 is no shift")
    make_solver(name)
    with console.status("model"):
        opened = load_model(model, **given)
    found = import_schedule(source, form, opened, name, nfe, shift)
    write_output(out, found.schedule.to_json())
    made = found.schedule
    table = "its own table" if form in CHECKPOINTS else f"the table of {made.solver}"
    say(f"{out}: {made.nfe} evaluations, {len(made.knots) - 1} steps, {table}")
    for sentence in found.notes:
        typer.echo(f"Note: {sentence}", err=True)
