"""The problem that a run of learning is given, and the progress it tells after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..distance import Distance
from ..errors import InputError
from ..grid import Grid
from ..solver import Solver, Tableau
from .pairs import Pairs


@dataclass(frozen=True)
class Problem:
    """K students of one solver, the teacher pairs they learn from, and the distance.

    Args:
        knots: start grids as times [K, N+1] ([N+1] for one member), from t_max to t_min.
        train, valid: teacher pairs; member k trains on train[subsets[k]].
        nfe: network evaluations; 0 means the solver's stages times N.
        seeds: one seed per member, for the order of its batches.
        subsets: indices into train [K, M]; every member has all pairs if not given.
        family: start grids [K, N+1] of every NFE that is learned at once, by a procedure of
            families; of nfe alone if not given.
        later: [K], true for the members whose start time is learned as well.

    Raises:
        InputError: fewer than two training pairs, no held-out pair, or sizes that do not fit.
    """

    denoiser: Denoiser
    solver: Solver
    knots: Tensor
    train: Pairs
    valid: Pairs
    distance: Distance
    nfe: int = 0
    seeds: Sequence[int] = ()
    subsets: Tensor | None = None
    family: Mapping[int, Tensor] = field(default_factory=dict)
    later: Sequence[bool] = ()

    def __post_init__(self) -> None:
        if len(self.train) < 2 or len(self.valid) < 1:
            found = f"{len(self.train)} and {len(self.valid)}"
            raise InputError(f"learning needs at least 2 training and 1 held-out pair, got {found}")
        object.__setattr__(self, "knots", self.knots.reshape(-1, self.knots.shape[-1]))
        K, steps = len(self.knots), self.knots.shape[1] - 1
        for name, given in (("seeds", self.seeds), ("later", self.later)):
            if given and len(given) != K:
                raise InputError(f"{len(given)} {name} for {K} members: need one each")
        object.__setattr__(self, "nfe", self.nfe or self.solver.stages * steps)
        object.__setattr__(self, "family", dict(self.family) or {self.nfe: self.knots})
        pool, count = self.subsets, len(self.train)
        pool = torch.arange(count).expand(K, -1) if pool is None else pool
        fits = pool.ndim == 2 and len(pool) == K
        if not fits or int(pool.min()) < 0 or int(pool.max()) >= count:
            raise InputError(
                f"subsets {list(pool.shape)}: need [{K}, M] of indices below {count}, "
                "a row per member"
            )
        object.__setattr__(self, "subsets", pool)


@dataclass(frozen=True)
class Progress:
    """The state of K members after an epoch; epoch 0 is the start.

    train, valid: training loss of the epoch and hard held-out loss after it, [K].
    moved: mean length of the moves of each member's training noise, in unit-variance noise, [K]; at
        most the radius of the ball, 0 without one.
    best_valid, best_epoch: each member's best hard held-out loss so far and its epoch, [K].
    best, tableau: the grids and coefficients of these epochs, [K, …].
    network_evals: network evaluations so far, counted per sample.
    work: the part of them that each member caused, [K].
    last: the last epoch that each member took part in, [K].
    snapshot: returns the run's whole state, for `learn(…, resume=…)`. It is valid until the next
        epoch begins.
    """

    epoch: int
    train: Tensor
    valid: Tensor
    moved: Tensor
    best_valid: Tensor
    best_epoch: Tensor
    best: Grid
    tableau: Tableau
    network_evals: int
    work: Tensor
    last: Tensor
    snapshot: Callable[[], dict[str, Tensor]]

    def at(self, nfe: int) -> Progress:
        """The progress at an NFE: this one, where a single NFE is learned."""
        return self
