"""The content of schedule files: the one place where a learned grid becomes a Schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..core.learning.config import LearnConfig
from ..core.learning.problem import Progress
from ..core.solver import Tableau, make_solver
from ..core.user_code import absolute, label
from ..models import Model
from .file import Schedule, noise_to_dict
from .provenance import provenance


def make_schedule(
    model: Model,
    solver: str,
    nfe: int,
    progress: Progress,
    member: int,
    config: LearnConfig,
    *,
    start: str,
    start_loss: float,
    seed: int = 0,
    baselines: Mapping[str, float | None] | None = None,
    experiment: str | None = None,
    row: str | None = None,
) -> Schedule:
    """The best schedule of a member as a schedule file has it.

    Args:
        progress: the last of the run.
        start, start_loss: the grid the member began from, and its held-out loss.
        seed: number of the member's seed, beside config.seed.
        baselines: held-out losses of hand-made grids by name; None for one that is not finite.
        experiment, row: fingerprint of the sweep and key of the row it belongs to.
    """
    noise, table = model.denoiser.noise, table_of(progress, member)
    losses = {
        "start_loss": start_loss,
        "train_loss": progress.train[member].item(),
        "valid_loss": progress.best_valid[member].item(),
    }
    return Schedule(
        knots=tuple(progress.best.knots[member].tolist()),
        evals=tuple(table.evals.tolist()),
        state=tuple((table.state / table.state[0]).tolist()),
        outputs=tuple(map(tuple, table.outputs.tolist())),
        noise=noise_to_dict(noise),
        prior_scale=noise.prior_scale * table.state[0].item(),
        solver=absolute(solver),
        order=make_solver(solver).order,
        nfe=nfe,
        model=model.id,
        model_hash=model.hash,
        conditioning=model.conditioning,
        guidance=model.guidance,
        shift=model.settings.get("shift"),
        prediction=model.prediction,
        coefficients="corrections" in learned_parts(config),
        procedure=label(config.procedure),
        start=label(start),
        losses={name: loss if math.isfinite(loss) else None for name, loss in losses.items()},
        baselines={label(name): {"valid_loss": loss} for name, loss in (baselines or {}).items()},
        seeds={"seed": config.seed, "member": seed},
        versions=provenance(),
        experiment=experiment,
        row=row,
    )


def table_of(progress: Progress, member: int) -> Tableau:
    """The table of a member's best grid."""
    return progress.tableau.take(torch.tensor(member))


def learned_parts(config: LearnConfig) -> tuple[str, ...]:
    """The parts that a procedure learns beside knots: "times" and "corrections" to coefficients."""
    corrections = bool(vars(config).get("coefficients", False))
    times = config.offset_window > 0
    start = bool(vars(config).get("start_time", False))
    named = {"times": times, "corrections": corrections, "start": start}
    return tuple(part for part, learned in named.items() if learned)
