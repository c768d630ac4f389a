"""`ld3-dist transfer`: does a schedule work where it was not learned?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import InputError
from .console import console, say, warn
from .nfe import parse_nfe

if TYPE_CHECKING:
    from ..schedule.transferring import Prepared

TABLE, CSV, PICTURE = "transfer.parquet", "transfer.csv", "transfer.png"
"""Files in the folder of --out."""

WIDTH = 80
"""Characters of the matrix."""


# Most lines are options: the command line and its help are made from the signature.
def transfer(
    schedules: Annotated[
        list[str], typer.Argument(help="Schedule files (paths or URLs); several make a matrix.")
    ],
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="Models, with commas between them: base (the schedules' own), edm:FILE, "
            "diffusers:FOLDER, …; NAME=MODEL gives one a name. base if not given."
        ),
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Guidance scales, e.g. 3,5,7; the schedules' if not given.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Image sizes, e.g. 512,768x512 (height x width).")
    ] = None,
    dtypes: Annotated[
        str | None, typer.Option(help="Dtypes of the network, e.g. bfloat16,float8.")
    ] = None,
    solvers: Annotated[
        str | None,
        typer.Option(
            help="Solvers to run knots and network times with; each schedule's own, with its own "
            "table, if not given."
        ),
    ] = None,
    nfe: Annotated[
        str | None,
        typer.Option(help="Network evaluations, for the files of curves: 4-10 or 4,6,8."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Fresh samples of a set.")] = 2000,
    repeats: Annotated[int, typer.Option(help="Disjoint sets of samples.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the fresh samples.")] = 0,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher of every site, solver/NFE/grid; unipc-3/20/karras.")
    ] = None,
    distance: Annotated[
        str | None, typer.Option(help="Distance to the teacher, as for learn; l2.")
    ] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Hand-made grids to compare with, e.g. karras,ays-sd15.")
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map",
            help="lambda: map times to the same noise levels where a model has another noise "
            "schedule. Such a model is refused otherwise.",
        ),
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Text file of prompts, one a line.")] = None,
    classes: Annotated[str | None, typer.Option(help="Text file of class numbers to draw.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the GPU if there is one.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for table and picture; the same command goes on in it."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Sites at a time, a process each.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder of others.")] = False,
) -> None:
    """Score schedules where they were not learned: other models, guidance, sizes, dtypes, solvers.

    At each site a teacher of that site makes fresh pairs, and the schedules stand against the
    hand-made grids there, on the same noise. A ratio below 1 is nearer to the teacher than the best
    of them. Exits with 1 if a site failed; the others are there.
    """
    from ..schedule.provenance import default_device
    from ..schedule.transferring import prepare

    given: dict[str, Any] = {
        "models": [name for text in models or () for name in _listed(text, "--models")],
        "guidance": [_number(text) for text in _listed(guidance, "--guidance")],
        "sizes": [_size(text) for text in _listed(sizes, "--sizes")],
        "dtypes": _listed(dtypes, "--dtypes"),
        "solvers": _listed(solvers, "--solvers"),
        "nfe": () if nfe is None else parse_nfe(nfe),
        "samples": samples,
        "repeats": repeats,
        "seed": seed,
        "mapping": mapping,
        "device": device or default_device(),
    }
    some = {"teacher": teacher, "distance": distance, "prompts": prompts, "classes": classes}
    given |= {name: value for name, value in some.items() if value is not None}
    if baselines is not None:
        given["baselines"] = _listed(baselines, "--baselines")
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: give 1 or more")
    if out is not None:
        _check_folder(out, force)
    with console.status("opening every model once"):
        prepared = prepare(schedules, **given)
    records = _score(prepared, out, jobs)
    _report(records, out)
    if any(record["status"] == "failed" for record in records):
        raise typer.Exit(1)


def _listed(text: str | None, option: str) -> list[str]:
    """The words of a list with commas. Raises InputError for an empty one."""
    if text is None:
        return []
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise InputError(f"{option} {text!r}: is empty; give values with commas between them")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--guidance {text!r}: is no number; write it as 3,5,7.5") from None


def _size(text: str) -> tuple[int, int]:
    height, mark, width = text.partition("x")
    width = width if mark else height
    if not (height.isdecimal() and width.isdecimal() and len(height + width) < 12):
        raise InputError(f"--sizes {text!r}: write a size as 512, or as 768x512 (height x width)")
    return int(height), int(width)


def _check_folder(out: Path, force: bool) -> None:
    """Refuse a folder that is not empty and holds no earlier transfer."""
    from ..store.outputs import check_output

    earlier = any((out.expanduser() / name).exists() for name in (TABLE, "losses"))
    check_output(out, "folder", force or earlier, option="--out")


def _score(prepared: Prepared, out: Path | None, jobs: int) -> list[dict[str, Any]]:
    """The records of all sites; says what each site answers as soon as it is done."""
    from ..report.transfers import answer
    from ..schedule.transferring import score
    from ..store.frames import of_kind, records
    from ..store.tables import frame_of

    rows = sum(len(work.entries) for work in prepared.work)
    say(
        f"{len(prepared.sites)} sites, {rows} schedules and grids, "
        f"{prepared.network_evals:,} network evaluations in all"
    )
    found: list[dict[str, Any]] = []
    for one in score(prepared, None if out is None else out.expanduser(), jobs):
        if one.failed:
            warn(one.site, one.failed, "red")
        else:
            say(one.site, style="bold")
        for row in records(of_kind(frame_of("transfers", one.records), "learned")):
            say(f"  {answer(row)}")
        found += one.records
    return found


def _report(records: list[dict[str, Any]], out: Path | None) -> None:
    """Print the matrix; write table and picture."""
    from ..report.transfers import matrix, matrix_lines
    from ..store.tables import frame_of

    frame = frame_of("transfers", records)
    table = matrix(frame)
    if len(table.cells) > 1:
        say("")
        for line in matrix_lines(table, WIDTH):
            say(line)
    if out is None:
        say("Nothing is kept without --out FOLDER.")
        return
    from ..report.figures.transfer import draw_matrix
    from ..store.outputs import write_output
    from ..store.table_files import encode_table

    folder = out.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_output(folder / TABLE, encode_table("transfers", records))
    write_output(folder / CSV, frame.to_csv(index=False))
    write_output(folder / PICTURE, draw_matrix(table))
    say(f"Written: {folder / TABLE}, {CSV}, {PICTURE}")
