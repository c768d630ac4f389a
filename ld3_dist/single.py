"""One schedule for one model, here and now: teach, learn, compare, write. What a sweep does in a
cell, without Ray.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from .core.distance import Distance
from .core.errors import InputError
from .core.learning.learn import LearnConfig, Pairs, learn
from .core.learning.learn import Progress as Learned
from .core.sample import draw_noise
from .core.solver import Solver, Tableau, make_solver
from .experiment.axes import start_name
from .models import Model, ModelOptions, open_model
from .report.figures.samples import write_strip
from .schedule.file import Schedule, noise_to_dict
from .tasks.context import (
    default_device,
    make_distance_for,
    make_samples,
    provenance,
    schedule_knots,
    start_knots,
)
from .training_free import TRAINING_FREE

STARTS = {"default": ("log_snr", "optimal-steps"), "paper": ("log_snr",)}
"""By preset: what did best over solvers, NFE and models (experiments/benchmarks/starts.py), and
what was published.
"""

BATCH = 250
PICTURES = 8


class Diverged(RuntimeError):
    """Numbers that are not finite came out where there is no way to go on."""


@dataclass(frozen=True)
class Request:
    """What to learn; the fields are the options of `ld3-dist learn`."""

    model: str
    solver: str
    nfe: int
    pairs: int
    teacher: str
    distance: str
    gamma: float
    epochs: int | None
    guidance: float | None
    device: str | None
    seed: int
    prompts: str | None = None
    classes: str | None = None
    trunk: str | None = None
    upsample: bool = False
    dtype: str | None = None
    preset: str = "default"
    coefficients: bool = False
    starts: tuple[str, ...] = ()  # none: those of STARTS
    checkpointing: str = "auto"

    def config(self) -> LearnConfig:
        """How to learn: the preset, and what is asked for beyond it. Raises InputError."""
        said = {} if self.epochs is None else {"epochs": self.epochs}
        return LearnConfig.of(
            self.preset, gamma=self.gamma, seed=self.seed, coefficients=self.coefficients,
            checkpointing=self.checkpointing, **said,
        )  # fmt: skip

    def teacher_parts(self) -> tuple[str, int, str]:
        """Solver, NFE and grid of the teacher. Raises InputError for anything else."""
        parts = self.teacher.split("/")
        if len(parts) != 3 or not parts[1].isdigit() or int(parts[1]) < 1:
            raise InputError(
                f"--teacher {self.teacher!r}: write it as solver/NFE/grid, e.g. unipc-3/20/karras"
            )
        return parts[0], int(parts[1]), parts[2]


def learn_one(request: Request, out: Path, console: Console) -> Schedule:
    """Learn a schedule and write its file, and beside it a picture `<out>.png` of teacher, best
    hand-made and learned.

    Raises InputError for anything in the request that cannot be used, before the learning starts,
    and Diverged where the model's samples are not finite."""
    device = request.device or default_device()
    config = request.config()
    request = replace(request, starts=request.starts or STARTS[request.preset])
    student = make_solver(request.solver)
    if request.nfe < student.stages:
        raise InputError(
            f"--nfe {request.nfe}: too few for {request.solver}, a step of which takes "
            f"{student.stages} evaluations"
        )
    request.teacher_parts()
    if request.pairs < 2:
        raise InputError(f"--pairs {request.pairs}: at least 2 are needed")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: its folder does not exist; create it or name another")
    options = ModelOptions(
        device=device, guidance=request.guidance, prompts=request.prompts, classes=request.classes,
        dtype=request.dtype,
    )  # fmt: skip
    opened = open_model(request.model, options)
    lpips = (
        {"trunk": request.trunk, "upsample": request.upsample}
        if request.distance.startswith("lpips")
        else {}
    )
    distance = make_distance_for(request.distance, opened, device, **lpips)
    starts = _starts(request, opened, student)
    with console.status("teacher pairs"):
        train, valid = _pairs(request, opened, device)
        starts |= _starts(request, opened, student, train)
    knots = torch.stack([starts[name] for name in request.starts])
    progress = _learn(request, opened, student, knots, (train, valid), distance, config, console)
    best = int(progress.best_valid.argmin())
    if not math.isfinite(progress.best_valid[best].item()):
        raise Diverged(
            f"the held-out loss was {progress.best_valid[best].item()} from the start on: "
            f"{opened.id} does not give "
            f"finite samples in {request.nfe} evaluations of {request.solver}; nothing is written"
        )
    tableau = Tableau(
        progress.tableau.evals[best], progress.tableau.state[best], progress.tableau.outputs[best]
    )
    baselines = _baselines(request, opened, valid, distance)
    schedule = _schedule(
        request, opened, progress, best, tableau, {n: loss for n, (loss, _) in baselines.items()}
    )
    schedule.save(out)
    _report(
        request,
        opened,
        valid,
        tableau,
        baselines,
        progress.best_valid[best].item(),
        best,
        out,
        console,
    )
    return schedule


def _starts(
    request: Request, opened: Model, student: Solver, pairs: Pairs | None = None
) -> dict[str, Tensor]:
    """Start grids [N+1]: without pairs those that need none, by name or of a schedule file; with
    pairs the others.
    """
    steps, found = student.steps(request.nfe), {}
    for name in request.starts:
        try:
            if name.endswith(".json") and pairs is None:
                found[name] = schedule_knots(name, opened, steps)
            elif not name.endswith(".json") and (start_name(name) in TRAINING_FREE) == (
                pairs is not None
            ):
                found[name] = start_knots(name, opened, student, request.nfe, pairs)
        except InputError as error:
            raise InputError(f"--start: {error}") from error
    return found


def _pairs(request: Request, opened: Model, device: str) -> tuple[Pairs, Pairs]:
    """As many pairs to learn from as are held out."""
    solver_name, nfe, grid = request.teacher_parts()
    teacher, indices = make_solver(solver_name), range(2 * request.pairs)
    noise = draw_noise(request.seed, indices, tuple(opened.denoiser.shape))
    given = Pairs(noise, noise, opened.draw_condition(request.seed, indices)).to(device)
    schedule = opened.denoiser.noise
    knots = start_knots(grid, opened, teacher, nfe)
    table = teacher.tableau(schedule, teacher.coupled(schedule, knots, nfe))
    whole = Pairs(given.noise, make_samples(opened, table, given, BATCH), given.condition)
    lost = int((~torch.isfinite(whole.target).flatten(1).all(1)).sum())
    if lost:
        raise Diverged(
            f"{lost} of {len(whole)} samples of the teacher {request.teacher} are not finite, so "
            f"that there is nothing "
            f"to learn from: use another --teacher or --dtype, or look at what {opened.id} returns"
        )
    return whole[: request.pairs], whole[request.pairs :]


def _learn(
    request: Request, opened: Model, student: Solver, knots: Tensor, pairs: tuple[Pairs, Pairs],
    distance: Distance, config: LearnConfig, console: Console,
) -> Learned:  # fmt: skip
    columns = (
        TextColumn("learning"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("learning", total=config.epochs, state="")
        progress = None
        for progress in learn(
            opened.denoiser, student, knots, *pairs, distance, config, nfe=request.nfe
        ):
            state = f"held-out {request.distance} {progress.best_valid.min().item():.4g}"
            bar.update(task, completed=progress.epoch, state=state)
    assert progress is not None
    return progress


def _baselines(
    request: Request, opened: Model, valid: Pairs, distance: Distance
) -> dict[str, tuple[float, Tableau]]:
    """Held-out loss and table of the hand-made grids."""
    found, student, schedule = {}, make_solver(request.solver), opened.denoiser.noise
    for name in ("uniform", "quadratic", "log_snr", "karras"):
        knots = start_knots(name, opened, student, request.nfe)
        table = student.tableau(schedule, student.coupled(schedule, knots, request.nfe))
        with torch.no_grad():
            loss = (
                distance(make_samples(opened, table, valid, BATCH), valid.target)
                .double()
                .mean()
                .item()
            )
        found[name] = (loss if math.isfinite(loss) else math.inf, table)
    return found


def _schedule(
    request: Request,
    opened: Model,
    progress: Learned,
    best: int,
    table: Tableau,
    baselines: dict[str, float],
) -> Schedule:
    schedule = opened.denoiser.noise
    return Schedule(
        knots=tuple(progress.best.knots[best].tolist()),
        evals=tuple(table.evals.tolist()),
        state=tuple(table.state.tolist()),
        outputs=tuple(map(tuple, table.outputs.tolist())),
        noise=noise_to_dict(schedule),
        prior_scale=schedule.prior_scale,
        solver=request.solver,
        nfe=request.nfe,
        model=opened.id,
        model_hash=opened.hash,
        conditioning=opened.conditioning,
        guidance=opened.guidance,
        shift=opened.settings.get("shift"),
        prediction=opened.prediction,
        coefficients=request.coefficients,
        losses={"valid_loss": progress.best_valid[best].item()},
        seeds={"seed": request.seed},
        versions=provenance(),
        baselines={
            n: {"valid_loss": loss if math.isfinite(loss) else None}
            for n, loss in baselines.items()
        },
    )


def _report(
    request: Request,
    opened: Model,
    valid: Pairs,
    table: Tableau,
    baselines: dict[str, tuple[float, Tableau]],
    loss: float,
    best: int,
    out: Path,
    console: Console,
) -> None:
    name, (base, base_table) = min(baselines.items(), key=lambda item: item[1][0])
    ratio = base / max(loss, 1e-300)
    verdict = (
        f"{ratio:.1f}x better"
        if ratio >= 1.05
        else "no better"
        if ratio > 0.95
        else f"{1 / ratio:.1f}x worse"
    )
    console.print(
        f"{request.solver}, {request.nfe} evaluations: held-out {request.distance} {loss:.4g} "
        f"(started from "
        f"{request.starts[best]}), best hand-made grid ({name}) {base:.4g}: {verdict}",
        highlight=False,
        soft_wrap=True,
    )
    written = f"Schedule: {out}"
    if len(opened.image_shape) == 3 and opened.image_shape[0] in (1, 3):
        few = valid[:PICTURES]
        rows: dict[str, Tensor] = {
            "teacher": few.target, "baseline": make_samples(opened, base_table, few, BATCH),
            "learned": make_samples(opened, table, few, BATCH),
        }  # fmt: skip
        solver, nfe, _ = request.teacher_parts()
        notes = {"teacher": f"{solver}, {nfe} NFE"}
        for kind, value in (("baseline", base), ("learned", loss)):
            notes[kind] = f"{request.solver}, {request.nfe} NFE\n{request.distance} {value:.3g}"
        picture = out.with_suffix(".png")
        write_strip({key: value.float().cpu() for key, value in rows.items()}, name, picture, notes)
        written += f"\nPicture: {picture}"
    console.print(written, highlight=False, soft_wrap=True)
