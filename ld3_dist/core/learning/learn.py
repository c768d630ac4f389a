"""LD3: gradient descent on the grid of a solver (arXiv 2405.15506), for K members at once.

Teacher Psi*, student Psi_xi, soft teacher forcing in unit-variance noise:

    L(xi) = E_{x_T} min_{x' in Ball(x_T, r)} d( Psi_xi(x'), Psi*(x_T) ),      r = gamma * d / NFE^2
    (section 3.2)

`learn` runs one of two procedures, `Descent` (preset "default") or `Published` (preset "paper"),
and yields after every epoch: the caller logs, stops, plots, keeps a snapshot to go on from."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..denoiser import Denoiser
from ..distance import Distance
from ..solver import Solver
from .config import LearnConfig
from .descent import Descent
from .pairs import Pairs
from .procedure import Progress
from .published import Published

__all__ = ["LearnConfig", "Pairs", "Progress", "learn"]

PROCEDURES = {"default": Descent, "paper": Published}


def learn(
    denoiser: Denoiser,
    solver: Solver,
    knots: Tensor,
    train: Pairs,
    valid: Pairs,
    distance: Distance,
    config: LearnConfig | None = None,
    *,
    nfe: int | None = None,
    seeds: list[int] | None = None,
    subsets: Tensor | None = None,
    resume: tuple[int, dict[str, Tensor]] | None = None,
) -> Iterator[Progress]:
    """Learn K schedules; yields after every epoch, first the start itself.

    Args:
        knots: start grids as times [K, N+1] (or [N+1] for one member).
        train, valid: pairs; where `subsets` [K, M] is given, member k trains on the pairs
            train[subsets[k]].
        distance: compares decoded samples with targets, per sample.
        nfe: evaluations, if fewer than the solver's stages times N.
        seeds: one seed per member, for the order of its batches; config.seed for all if not given.
        resume: (epoch, snapshot) of a run with the same arguments: goes on after that epoch, to the
            same end.

    Raises:
        InputError: fewer than two training pairs or no held-out pair, shapes that do not fit, bad
        settings.
    """
    config = config or LearnConfig()
    knots = knots.reshape(-1, knots.shape[-1])
    procedure = PROCEDURES[config.preset]
    session = procedure(
        denoiser, solver, knots, train, valid, distance, config, nfe, seeds, subsets
    )
    if resume is None:
        yield session.validate(0)
        yield from session.run(1)
    else:
        epoch, state = resume
        session.restore(state)
        if session.active:
            yield from session.run(epoch + 1)
