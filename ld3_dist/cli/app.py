"""`ld3-dist`: sweeps, single schedules, reports.

Exit codes: 0 done, 1 something failed and is recorded, 2 bad input.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from ..core.errors import InputError
from ..store.credentials import masked
from .check import check
from .compare import compare
from .console import console, say, warn
from .import_ import import_schedule_file
from .learn import learn
from .merge import merge
from .publish import publish
from .schema import schema
from .show import ExperimentFile, default_output, show
from .status import say_unfinished, status
from .table import table
from .transfer import transfer

if TYPE_CHECKING:
    from ..cluster.sweep import Sweep
    from ..store.part import Part

FIRST_WORDS = """\
ld3-dist learns where a few-step diffusion solver should put its steps.

A schedule for one model, here and now (no GPU needed):
  ld3-dist learn --model digits --solver dpmpp-3 --nfe 5 --out my.json

A sweep from a YAML file, on this machine or on a Ray cluster:
  ld3-dist show FILE.yaml      what it is and what it costs
  ld3-dist doctor FILE.yaml    whether everything is there
  ld3-dist sweep FILE.yaml     teach, search, evaluate, report; again to go on

Everything else:
  ld3-dist --help              commands; ld3-dist COMMAND --help explains one
  ld3-dist --install-completion  completes commands and options in your shell
"""
"""The answer to a call without arguments."""

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Learn where a few-step diffusion solver should put its steps. "
    "`sweep` does it on a cluster, `learn` for one model.",
)
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder or object-store URL that keeps everything; runs/<name> if not given.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to join, from one of its machines: auto, HOST:PORT. Else Ray runs on "
        "this machine."
    ),
]


@app.callback()
def first_words(context: typer.Context) -> None:
    """Say what to type, where no command is given."""
    if context.invoked_subcommand is None:
        typer.echo(FIRST_WORDS, nl=False)


@app.command()
def sweep(
    experiment: ExperimentFile,
    output: Output = None,
    address: Address = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do part I of N of the teaching and the search, on this machine: for arrays of "
            "jobs without a Ray cluster. The last part to end evaluates and reports.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what it would do, reuse and leave out, and do nothing: `show --output`.",
        ),
    ] = False,
) -> None:
    """Run a whole experiment: teach, search, evaluate, report.

    Every stage does only what is not there yet: interrupt it however you like and run the same
    command again. Exits with 1 if something failed (it is in the failures table), 2 if the
    experiment cannot be run as written."""
    from ..experiment import load_experiment
    from .shards import sweep_part

    if dry_run:
        show(experiment, output or default_output(load_experiment(experiment)))
    elif shard is not None:
        sweep_part(experiment, output, address, shard, _stages)
    else:
        _stages(experiment, output, address, ("teach", "search", "evaluate"))


@app.command()
def teach(experiment: ExperimentFile, output: Output = None, address: Address = None) -> None:
    """Generate the teacher's pairs only (noise and precise sample), in verified shards."""
    _stages(experiment, output, address, ("teach",))


@app.command()
def evaluate(experiment: ExperimentFile, output: Output = None, address: Address = None) -> None:
    """Sample the best schedules and the baselines of a finished search and score them."""
    _stages(experiment, output, address, ("teach", "evaluate"))


def _stages(
    experiment: Path,
    output: str | None,
    address: str | None,
    stages: tuple[str, ...],
    part: Part | None = None,
) -> Sweep:
    """Run stages of a sweep and show them; with a part, the teaching and search of the part alone.

    Exits with 1 if something failed.
    """
    from ..cluster.sweep import Sweep
    from ..experiment import load_experiment
    from ..experiment.reading import blamed_on
    from ..report.figures import check_figures
    from ..store.opening import open_storage
    from ..store.tables import unreadable_tables
    from .display import show as show_events

    settings = load_experiment(experiment)
    with blamed_on(str(experiment), "report.figures"):
        check_figures(settings.report.figures)
    place = output or default_output(settings)
    run = Sweep(settings, open_storage(place), address, stages, str(experiment), part)
    again = " ".join(["ld3-dist", *sys.argv[1:]])
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        show_events(run.run(), console)
    except KeyboardInterrupt:
        say(f"\nInterrupted; everything finished is kept in {place}. Go on with:\n  {again}")
        raise typer.Exit(1) from None
    except RuntimeError as error:
        warn("Stopped", f"{error}\nGo on with:\n  {again}", "red")
        raise typer.Exit(1) from None
    whole = part is None and ("evaluate" in stages or "search" in stages)
    lost = _finish(place) if whole else []
    if run.failures:
        warn(
            f"{run.failures} tasks failed",
            f"see {place}/failures; the same command tries them again",
        )
    damaged = unreadable_tables(place)
    if damaged:
        warn(
            f"{len(damaged)} files cannot be read",
            f"{', '.join(damaged[:5])} in {place}; `ld3-dist check {place}` says more",
        )
    if part is None and (run.failures or lost or damaged):
        raise typer.Exit(1)
    return run


def _finish(place: str) -> list[str]:
    from ..report import write_report
    from .display import print_summary
    from .exports import print_exports

    lost = print_summary(place, console)
    paths = write_report(place)
    print_exports(place)
    say(f"Report: {paths.html}")
    return lost


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@app.command()
def report(
    results: Annotated[str, typer.Argument(help="Output folder (or URL) of a sweep.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Where to write the page; <results>/report if not given."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write the HTML page, figures and Markdown table of a sweep from its result tables alone."""
    from ..report import write_report
    from ..store.outputs import check_output
    from .display import print_summary

    if output and "://" not in output:
        check_output(output, "folder", force, option="--output")
    print_summary(results, console)
    say_unfinished(results)
    paths = write_report(results, output) if output else write_report(results)
    say(f"Report: {paths.html}")


app.command("show")(show)
app.command("schema")(schema)
app.command("learn")(learn)
app.command("check")(check)
app.command("compare")(compare)
app.command("merge")(merge)
app.command("publish")(publish)
app.command("table")(table)
app.command("status")(status)
app.command("import")(import_schedule_file)
app.command("transfer")(transfer)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="EDM .pkl, or latent-diffusion .ckpt; nothing in it is executed.")
    ],
    target: Annotated[
        Path, typer.Argument(help="Safetensors file to write; for latent diffusion a folder.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML of a latent-diffusion checkpoint, e.g. its project's cin256-v2.yaml."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Convert an EDM checkpoint to safetensors, or an original latent-diffusion one to a diffusers
    folder.

    Averaged (EMA) weights are taken where there are any.
    """
    from ..store.outputs import check_output

    if config is None and source.suffix == ".ckpt":
        raise InputError(
            f"{source}: a latent-diffusion checkpoint needs its YAML; name it with --config"
        )
    read = {"the command": source} | ({"--config": config} if config else {})
    check_output(target, "folder" if config else "file", force, option="TARGET", inputs=read)
    if config is None:
        from ..models.edm.opening import convert as convert_edm

        convert_edm(source, target)
    else:
        from ..models.diffusers.latent_diffusion import convert_original

        convert_original(source, config, target)
    kind = "edm" if config is None else "diffusers"
    say(f"{target}: use it as --model {kind}:{target}")


@app.command()
def doctor(
    experiment: ExperimentFile,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Also check this folder or URL for results."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the checks as JSON, and nothing else.")
    ] = False,
) -> None:
    """Check everything an experiment needs (weights, extras, memory, GPUs, storage) before anything
    runs.

    Downloads nothing and leaves nothing behind. Exits with 2 if something is missing, and says
    where to get it.
    """
    from ..doctor import checks_as_json, examine, print_checks
    from ..experiment import load_experiment

    settings = load_experiment(experiment)
    checks = examine(settings, output)
    if as_json:
        made = checks_as_json(settings.name, list(checks))
        typer.echo(json.dumps(made, indent=2))
        missing = made["missing"]
    else:
        missing = print_checks(checks, console)
    if missing:
        raise typer.Exit(2)


@app.command()
def export(
    schedule: Annotated[
        str, typer.Argument(help="Schedule file (path or URL), as `learn` or a sweep writes it.")
    ],
    form: Annotated[
        str, typer.Option("--format", help="sigmas, timesteps, comfyui, comfyui-node or diffusers.")
    ] = "sigmas",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File, or folder; stdout if not given.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="For diffusers: folder or id, if not the model's own.")
    ] = None,
    nfe: Annotated[
        int | None, typer.Option(help="Network evaluations, for the file of a curve.")
    ] = None,
    force: Force = False,
) -> None:
    """Give a schedule to another tool: a plain list of sigmas or timesteps, a line for ComfyUI, a
    diffusers scheduler.

    A list carries neither network times nor learned coefficients: what exactly is lost is said on
    stderr. The diffusers format is a folder for `LD3Scheduler.from_pretrained`, and comfyui-node
    one for ComfyUI's custom_nodes; these lose nothing.
    """
    from ..integrations.export import export as export_as

    found = export_as(schedule, form, out, pipeline, force, nfe)
    typer.echo(f"Written: {out}" if out else found.text)
    for sentence in found.lost:
        typer.echo(f"Warning: {sentence}", err=True)


def main() -> None:
    """Entry point: turns bad input, a file that cannot be used and too little memory into one
    message and an exit code.
    """
    try:
        app()
    except InputError as error:
        _end(str(error), 2)
    except OSError as error:
        if error.errno is None:
            raise
        _end(_about_file(error), 2)
    except MemoryError as error:
        said = str(error) or "an allocation failed"
        _end(
            f"there is not enough memory ({said}); use fewer pairs or samples, a smaller model "
            "dtype, or a machine with more",
            1,
        )


def _about_file(error: OSError) -> str:
    """The refusal of the operating system, with the file and the remedy."""
    said = error.strerror or type(error).__name__
    where = f"{error.filename}: {said}" if error.filename is not None else said
    if isinstance(error, PermissionError):
        return f"{where}; give this user access to it, or work on a copy"
    return f"{where}; check the path, the disk and the network"


def _end(message: str, code: int) -> NoReturn:
    """Print an error and leave with an exit code, without a traceback."""
    Console(stderr=True).print(
        f"[red]Error:[/red] {escape(masked(message))}", highlight=False, soft_wrap=True
    )
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
