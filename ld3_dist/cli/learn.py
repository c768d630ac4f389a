"""`ld3-dist learn`: one schedule for one model, its file, and a picture beside it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import InputError
from .budget import fitted
from .console import console, option, say, warn
from .nfe import parse_nfe

if TYPE_CHECKING:
    from ..core.learning.pairs import Pairs
    from ..core.solver import Solver
    from ..models import Model
    from ..schedule.file import Schedule

PICTURES = 8
"""Samples in the picture."""

MOST_PAIRS = 1_000_000
"""The most that --pairs takes; the samples of a seed end there."""


# Most lines are options: the command line and its help are made from the signature.
def learn(
    model: Annotated[
        str,
        typer.Option(
            help="digits, digits-flow, fashion, edm:FILE, diffusers:FOLDER, analytic:NAME or "
            "python:FILE.py:NAME."
        ),
    ],
    nfe: Annotated[
        str,
        typer.Option(
            help="Network evaluations of a sample; several for one curve, as 4-10 or 4,6,8 with "
            "--procedure curve."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Schedule file to write (JSON).")],
    solver: Annotated[
        str | None, typer.Option(help="Student solver; ipndm-3 if not given.")
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            help="Teacher pairs to learn from; as many again are held out. 100, and "
            "50 held out, if not given."
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            help="Network evaluations in all, teaching included: pairs, epochs and starts that "
            "are not given are fitted to it."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="The same by time, measured on the device.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher as solver/NFE/grid; unipc-3/20/karras.")
    ] = None,
    distance: Annotated[
        str | None,
        typer.Option(
            help="l2 (if not given), l1, feature, lpips-vgg, -alex, -squeeze; or of several, such "
            "as l2+0.1*feature, feature@stage-2, resized:64:lpips-alex."
        ),
    ] = None,
    procedure: Annotated[
        str | None,
        typer.Option(
            help="default; paper: the published procedure; curve: one file for any number of "
            "evaluations."
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(help="Radius of the noise ball, r = gamma d / NFE^2; 0 is hard forcing."),
    ] = None,
    coefficients: Annotated[
        bool | None,
        typer.Option("--coefficients", help="Learn corrections to the coefficients too."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pairs.")] = None,
    checkpointing: Annotated[
        str | None,
        typer.Option(help="Make activations again instead of keeping them: auto, always, never."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting of the procedure, as name=value."),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            help="Grid to start from, by name, or a schedule file (.json) of the same model with "
            "any number of evaluations. Several may be given; the best result is kept. The "
            "procedure's own if not given."
        ),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the GPU if there is one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of noise and batches.")] = 0,
    prompts: Annotated[
        str | None, typer.Option(help="Text file of prompts, one a line, for text models.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Text file of class numbers to draw.")] = None,
    trunk: Annotated[str | None, typer.Option(help="Weights file of the network of lpips.")] = None,
    upsample: Annotated[
        bool, typer.Option("--upsample", help="Enlarge images too small for lpips.")
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the network: float32, bfloat16, float16, float64, float8, int8."),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile the network: for GPUs; on a CPU it gains nothing."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Learn one schedule for one model, here and now (no Ray), and write it and a picture.

    Exits with 1 where learning found nothing better than the best hand-made grid, which is then
    what the file holds.
    """
    from ..core.user_code import FILE
    from ..schedule.teaching import Diverged
    from ..store.outputs import check_distinct, check_output

    settings = _given(
        procedure=procedure,
        gamma=gamma,
        coefficients=coefficients,
        epochs=epochs,
        checkpointing=checkpointing,
    )
    options = _given(
        device=device, guidance=guidance, prompts=prompts, classes=classes, dtype=dtype,
        compile=compiled or None,
    )  # fmt: skip
    files = [name for name in start or () if name.endswith(".json") or name.startswith(FILE)]
    given = {f"--start {name}": name.removeprefix(FILE) for name in files}
    given |= _given(**{"--prompts": prompts, "--classes": classes, "--trunk": trunk})
    check_output(out, "file", force, option="--out", inputs=given)
    picture = out.with_suffix(".png")
    check_distinct({"the schedule": out, "its picture": picture})
    check_output(picture, "file", force, option="the picture", inputs=given)
    try:
        schedule = _learn(
            model,
            out,
            pairs,
            options,
            lpips=_given(trunk=trunk, upsample=upsample or None),
            starts=tuple(start or ()),
            cell=_given(solver=solver) | {"nfe": parse_nfe(nfe)},
            how=_given(teacher=teacher, distance=distance),
            limit=_given(budget=budget, minutes=minutes),
            settings=settings | _parsed(setting or [], settings) | {"seed": seed},
        )
    except Diverged as error:
        warn("Diverged", str(error), "red")
        raise typer.Exit(1) from None
    if schedule.procedure is None:
        raise typer.Exit(1)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others keep their one home's default."""
    return {name: value for name, value in options.items() if value is not None}


def _parsed(settings: list[str], given: Collection[str]) -> dict[str, Any]:
    """`--set name=value`, read like a value in the YAML of an experiment.

    Args:
        given: settings that have options of their own and stand there.

    Raises InputError for another form, and for a setting that is given twice.
    """
    from ..core.yaml_text import parse_yaml

    found: dict[str, Any] = {}
    for text in settings:
        name, mark, value = text.partition("=")
        if not mark or not name.isidentifier():
            raise InputError(f"--set {text[:80]!r}: write it as name=value, e.g. --set lr=0.1")
        if name == "seed":
            raise InputError(f"--set {text[:80]}: give it as --seed")
        if name in found or name in given:
            raise InputError(f"--set {text[:80]}: {name} is given twice; give it once")
        found[name] = parse_yaml(value, f"--set {name}")
    return found


# One way from the names that were given to the file: every check comes before the work it saves.
def _learn(
    spec: str,
    out: Path,
    count: int | None,
    options: dict[str, Any],
    *,
    lpips: dict[str, Any],
    starts: tuple[str, ...],
    cell: dict[str, Any],
    how: dict[str, Any],
    limit: dict[str, Any],
    settings: dict[str, Any],
) -> Schedule:
    from ..core.learning.procedure import make_config
    from ..core.solver import make_solver
    from ..models import load_model
    from ..schedule.distances import open_distance
    from ..schedule.learning import check_before, learn, nfes_of
    from ..schedule.provenance import default_device
    from ..schedule.starts import check_member, check_start, grid_name, looks_at_pairs, start_knots
    from ..schedule.teaching import Teacher, teach
    from ..store.outputs import write_output

    if count is not None and not 2 <= count <= MOST_PAIRS:
        raise InputError(f"--pairs {count}: give 2 to {MOST_PAIRS}")
    config = make_config(**settings)
    nfes = nfes_of(cell["nfe"], cell.get("solver", "ipndm-3"), config)
    student = make_solver(cell.get("solver", "ipndm-3"))
    with option("--teacher"):
        teacher = Teacher.parse(how.get("teacher", str(Teacher())))
        check_start(teacher.start)
    with option("--start"):
        for name in starts:
            check_member(name)
    options.setdefault("device", default_device())
    model = load_model(spec, **options)
    with option("--start"):
        for name in starts:
            if not looks_at_pairs(name):
                for one in nfes:
                    start_knots(grid_name(name), model, student, one)
    name = how.get("distance", "l2")
    distance = open_distance(name, model, options["device"], **lpips)
    check_before(model, student.name, nfes, config, starts, distance)
    asked = fitted(
        model, cell | {"nfe": nfes}, config, limit, starts=starts, teacher=teacher, count=count,
        epochs=settings.get("epochs"), shown=2 * PICTURES if drawable(model) else 0,
    )  # fmt: skip
    settings = settings | {"epochs": asked.epochs}
    with console.status("teacher pairs"):
        pairs = teach(model, seed=config.seed, teacher=teacher, indices=asked.indices)
    with _Bar(asked.epochs, name) as bar:
        schedule = learn(
            model,
            **cell,
            pairs=pairs[asked.valid :],
            valid=pairs[: asked.valid],
            starts=asked.starts,
            distance=distance,
            teacher=teacher,
            on_progress=bar,
            **settings,
        )
    write_output(out, schedule.to_json())
    _report(schedule, name, out)
    if picture := draw(model, schedule, pairs[:PICTURES], teacher, name, out.with_suffix(".png")):
        say(f"Picture: {picture}")
    return schedule


class _Bar:
    """A progress bar over epochs with the best held-out loss so far."""

    def __init__(self, epochs: int, distance: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("learning"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
        )
        self.distance = distance
        self.progress = Progress(*columns, console=console)
        self.task = self.progress.add_task("learning", total=epochs, state="")

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, progress: Any) -> None:
        loss = progress.best_valid.min().item()
        state = f"held-out {self.distance} {loss:.4g}"
        self.progress.update(self.task, completed=progress.epoch, state=state)


def _report(schedule: Schedule, distance: str, out: Path) -> None:
    """Say what was learned, against the best hand-made grid; for a curve, at every NFE."""
    if schedule.curve is not None:
        for nfe in schedule.curve["nfes"]:
            _report_one(schedule.at(nfe, _student(schedule)), distance)
        say(f"Curve for any number of evaluations: {out}")
        return
    _report_one(schedule, distance)
    if schedule.procedure is None:
        say(
            f"Learning found nothing better, so {out} holds the hand-made grid {schedule.start}. "
            f"Try --start {schedule.start}, more --epochs, more --pairs, or --set lr=0.05.",
            style="bold yellow",
        )
    say(f"Schedule: {out}")


def _student(schedule: Schedule) -> Solver:
    """The solver that was learned for; it was given on this command line."""
    from ..core.solver import make_solver

    return make_solver(schedule.solver)


def _report_one(schedule: Schedule, distance: str) -> None:
    losses = {n: b["valid_loss"] for n, b in schedule.baselines.items()}
    usable = {n: loss for n, loss in losses.items() if loss is not None}
    loss = schedule.losses["valid_loss"] or 0.0
    text = f"{schedule.solver}, {schedule.nfe} evaluations: held-out {distance} {loss:.4g}"
    if schedule.procedure is not None:
        text += f" (started from {schedule.start})"
    if usable:
        name, base = min(usable.items(), key=lambda item: item[1])
        text += f", best hand-made grid ({name}) {base:.4g}: {_verdict(base / max(loss, 1e-300))}"
    say(text)


def _verdict(ratio: float) -> str:
    if ratio >= 1.05:
        return f"{ratio:.1f}x better"
    return "no better" if ratio > 0.95 else f"{1 / ratio:.1f}x worse"


def drawable(model: Model) -> bool:
    """True for a model whose samples are images, grey or in colour."""
    return len(model.image_shape) == 3 and model.image_shape[0] in (1, 3)


def draw(
    model: Model, schedule: Schedule, few: Pairs, teacher: object, distance: str, picture: Path
) -> Path | None:
    """A picture of the same noise: teacher, best hand-made grid, this schedule at its NFE.

    None where the samples are no images.
    """
    from ..core.solver import make_solver
    from ..report.figures.samples import write_strip
    from ..schedule.baselines import hand_made
    from ..schedule.sampling import make_samples

    if not drawable(model):
        return None
    losses = {n: b["valid_loss"] for n, b in schedule.baselines.items()}
    usable = {n: loss for n, loss in losses.items() if loss is not None}
    name = min(usable, key=lambda n: usable[n], default="log_snr")
    schedule = schedule.at(schedule.nfe, make_solver(schedule.solver))
    table = hand_made(name, model, make_solver(schedule.solver), schedule.nfe)[1]
    rows = {
        "teacher": few.target,
        "baseline": make_samples(model, table, few.noise, few.condition),
        "learned": make_samples(model, schedule.table_for(model), few.noise, few.condition),
    }
    notes = {"teacher": str(teacher)}
    values = {"baseline": usable.get(name), "learned": schedule.losses["valid_loss"]}
    for kind, value in values.items():
        notes[kind] = f"{schedule.solver}, {schedule.nfe} NFE\n{distance} {value or 0.0:.3g}"
    strips = {key: value.float().cpu() for key, value in rows.items()}
    write_strip(strips, name, picture, notes)
    return picture
