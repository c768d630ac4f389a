"""One run of learning: K members (start grids, seeds) that share every network call.

Each member has its own generator for batches and its own optimiser state, so learning K members
together changes nothing but the speed. The run keeps each member's best grid by the hard loss
(r = 0) on held-out pairs. The start is a candidate too, so the result is never worse than the start
on these pairs. A procedure, such as `Descent` or `Published`, says how parameters and noise move.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import InputError, unknown
from ..grid import Grid
from ..registry import Registry
from ..sample import sample_generator
from ..solver import Tableau
from .config import LearnConfig
from .learnable import LearnableGrid
from .objective import Objective
from .problem import Problem, Progress

Settings = TypeVar("Settings", bound=LearnConfig)


class Procedure(Generic[Settings]):
    """One run: parameters, moved noise, batches, validation, the best so far, and snapshots.

    A procedure derives from it and says in `epoch` how parameters and noise move. It also has these
    attributes:

        Config   the class of its settings, a LearnConfig
        version  a number that enters the keys of result rows: raise it when results change
        starts   names of all starts that are used if none are asked for (`starts_for`)
        Grid     the class of its parameters, a LearnableGrid

    Args:
        objective: the loss and its gradients; if not given, `make_objective` makes it.
    """

    Config: ClassVar[type[LearnConfig]] = LearnConfig
    version: ClassVar[int] = 1
    starts: ClassVar[tuple[str, ...]] = ("log_snr",)
    Grid: ClassVar[type[LearnableGrid]] = LearnableGrid
    learns_coefficients = False
    learns_start = False
    family: ClassVar[bool] = False
    """True if it learns the grids of several NFEs at once; it then yields FamilyProgress."""

    def __init__(
        self, problem: Problem, config: Settings, objective: Objective | None = None
    ) -> None:
        self.problem, self.config, self.nfe = problem, config, problem.nfe
        self.train, self.valid = problem.train, problem.valid
        K, self.device = len(problem.knots), problem.train.noise.device
        self.radius = config.radius(tuple(problem.denoiser.shape), self.nfe)
        # grids are float64, which not every accelerator has; on CUDA they stay with the network
        home = self.device if self.device.type == "cuda" else torch.device("cpu")
        self.grids: Any = self.make_grids(problem, config, home)
        self.objective = objective or self.make_objective(problem, config)
        # schedules are chosen by the distance that was asked for, whatever the loss of learning is
        self.judge = self.objective
        if type(self.objective) is not Objective or self.objective.distance is not problem.distance:
            self.judge = Objective(problem.denoiser, problem.distance, config.checkpointing)
        seeds = problem.seeds or [config.seed] * K
        self.generators = [sample_generator(seed, 0, "batches") for seed in seeds]
        assert problem.subsets is not None
        self.pool = problem.subsets.to(self.device)
        self.moved = self.train.noise[self.pool]  # [K, M, *shape], x' in unit-variance noise
        self.train_features = self.objective.distance.features(self.train.target)
        self.valid_features = problem.distance.features(self.valid.target)
        self.active = list(range(K))
        self.work = torch.zeros(K, dtype=torch.float64)
        self.last = torch.zeros(K, dtype=torch.long)
        self.charged = 0
        self.train_loss = torch.full((K,), math.nan, dtype=torch.float64)
        self.best: dict[str, Tensor] = {}
        self.state: dict[str, Tensor] = {}  # the procedure's own, part of a snapshot

    def make_grids(
        self, problem: Problem, config: LearnConfig, device: torch.device
    ) -> torch.nn.Module:
        """The parameters, at the start grids: a LearnableGrid, or the procedure's own module."""
        return self.Grid(
            problem.denoiser.noise,
            problem.solver,
            problem.knots,
            self.nfe,
            config.coordinate,
            config.offset_window,
            self.learns_coefficients,
            device,
            start_time=self.learns_start or problem.later or False,
        )

    @classmethod
    def starts_for(cls, config: Settings, later: bool = True) -> tuple[str, ...]:
        """The starts that are used if none are asked for; not later: all of them at t_max."""
        return cls.starts

    @classmethod
    def make_objective(cls, problem: Problem, config: LearnConfig) -> Objective:
        """The loss that is learned from; held-out losses stay in the distance of the problem."""
        return Objective(problem.denoiser, problem.distance, config.checkpointing)

    @property
    def network_evals(self) -> int:
        """Network evaluations spent so far, in samples."""
        judged = 0 if self.judge is self.objective else self.judge.network_evals
        return self.objective.network_evals + judged

    def charge(self, epoch: int) -> None:
        """Count the network evaluations since the last call as the work of the active members.

        Call it before a member leaves. So the count of a member does not depend on how long the
        others go on.
        """
        spent = self.network_evals - self.charged
        self.charged += spent
        if self.active:
            self.work[self.active] += spent / len(self.active)
            self.last[self.active] = epoch

    def run(self, first: int = 1) -> Iterator[Progress]:
        """Run the epochs from `first` on, until the last or until no member is active."""
        for epoch in range(first, self.config.epochs + 1):
            self.epoch(epoch)
            yield self.validate(epoch)
            if not self.active:
                return

    def epoch(self, epoch: int) -> None:
        """Run one epoch: usually, every pair of every active member once."""
        raise TypeError(f"{type(self).__name__} does not say what an epoch is")

    def batches(self) -> Iterator[Tensor]:
        """Batches of positions [K, b] in each member's pairs; every pair comes once per epoch."""
        M = self.pool.shape[1]
        order = torch.stack([torch.randperm(M, generator=g) for g in self.generators])
        yield from order.to(self.device).split(min(self.config.batch, M), dim=1)

    def members(self) -> Tensor:
        """The numbers of the active members, on the device."""
        return torch.tensor(self.active, device=self.device)

    @torch.no_grad()
    def hard_loss(self, tableau: Tableau, rows: Tensor | None = None) -> Tensor:
        """Mean distance [K] to the teacher on the held-out pairs, or on some `rows` of them.

        Student and teacher start from the same noise.
        """
        rows = torch.arange(len(self.valid), device=self.device) if rows is None else rows
        total = torch.zeros(len(tableau.evals), dtype=torch.float64)
        for chunk in rows.split(max(1, self.config.batch * 5)):
            index = chunk.expand(len(total), -1)
            loss = self.judge.losses(
                tableau, self.valid.noise[index], self.valid, self.valid_features, index
            )
            total += loss.sum(1).cpu().double()  # in this order: no float64 on the device
        return torch.nan_to_num(total / len(rows), nan=math.inf, posinf=math.inf)

    def validate(self, epoch: int) -> Progress:
        """Measure the present grids by the hard loss on the held-out pairs, and keep the best.

        Members without a better loss for `patience` epochs are no longer active.
        """
        with torch.no_grad():
            grid, tableau = self.grids.tableau()
        valid = torch.full((len(grid.knots),), math.inf, dtype=torch.float64)
        valid[self.active] = self.hard_loss(tableau.take(self.active))
        self.charge(epoch)
        self.keep(epoch, valid, grid, tableau)
        stalled = epoch - self.best["epoch"] >= self.config.patience
        self.active = [k for k in self.active if not stalled[k]]
        return self.progress(epoch, valid)

    def keep(self, epoch: int, valid: Tensor, grid: Grid, tableau: Tableau) -> Tensor:
        """Record the members with a new best held-out loss; returns booleans [K] that say which."""
        now = {"knots": grid.knots, "evals": grid.evals}
        now |= {"state": tableau.state, "outputs": tableau.outputs}
        now = {name: value.detach().cpu() for name, value in now.items()}
        if not self.best:
            self.best = {name: value.clone() for name, value in now.items()}
            self.best["valid"] = valid.clone()
            self.best["epoch"] = torch.zeros(len(valid), dtype=torch.long)
        better = valid < self.best["valid"]
        for name, value in now.items():
            self.best[name][better] = value[better]
        self.best["valid"][better] = valid[better]
        self.best["epoch"][better] = epoch
        return better

    def accepted(self) -> Tensor:
        """The x' that learning has arrived at, in the shape of `moved`."""
        return self.moved

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """Mean length of the moves x' - x_T, for each row of `moved`."""
        if not self.radius:
            return torch.zeros(len(self.moved), dtype=torch.float64)
        start = self.train.noise[self.pool]
        away = self.accepted().view(-1, *start.shape) - start
        return away.flatten(3).norm(dim=-1).mean(-1).flatten().cpu().double()

    def progress(self, epoch: int, valid: Tensor) -> Progress:
        """The Progress that is yielded after an epoch."""
        best = {name: value.clone() for name, value in self.best.items()}
        return Progress(
            epoch,
            self.train_loss.clone(),
            valid,
            self.lengths(),
            best["valid"],
            best["epoch"],
            Grid(best["knots"], best["evals"]),
            Tableau(best["evals"], best["state"], best["outputs"], self.problem.denoiser.noise),
            self.network_evals,
            self.work.clone(),
            self.last.clone(),
            self.snapshot,
        )

    def snapshot(self) -> dict[str, Tensor]:
        """The whole state after an epoch as CPU tensors by name.

        A killed run goes on from it exactly. It holds tensors only, so that it can be written
        without pickling.
        """
        made = {f"grids.{name}": value for name, value in self.grids.state_dict().items()}
        made |= {f"best.{name}": value for name, value in self.best.items()}
        made |= {f"generator.{k}": g.get_state() for k, g in enumerate(self.generators)}
        made |= {f"own.{name}": value for name, value in self.state.items()}
        made |= {
            "moved": self.moved,
            "train_loss": self.train_loss,
            "active": torch.tensor(self.active),
            "work": self.work,
            "last": self.last,
        }
        made["network_evals"] = torch.tensor(self.network_evals)
        return {name: value.detach().cpu().clone() for name, value in made.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a snapshot of the same run. Raises InputError for one of another run."""
        part = lambda prefix: {
            n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)
        }
        try:
            self.grids.load_state_dict(part("grids."))
            for k, generator in enumerate(self.generators):
                generator.set_state(state[f"generator.{k}"])
            own = part("own.")
            self.state = {name: own[name].to(value) for name, value in self.state.items()}
            self.best = {n: v.clone() for n, v in part("best.").items()}
            self.active = state["active"].tolist()
            self.moved = state["moved"].to(self.moved)
            self.train_loss = state["train_loss"].clone()
            self.work, self.last = state["work"].clone(), state["last"].clone()
            self.objective.network_evals = self.charged = int(state["network_evals"])
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"this state does not belong to this run of learning: {error}"
            ) from error


class Procedures(Registry[type[Procedure[Any]]]):
    """Procedures of learning: classes that derive from Procedure."""

    def get(self, name: str) -> type[Procedure[Any]]:
        """The class of a name. Raises InputError, also for a user's class that is no procedure."""
        found: Any = super().get(name)
        if not isinstance(found, type) or not issubclass(found, Procedure):
            raise InputError(
                f"procedure {name!r}: must be a class that derives from "
                "ld3_dist.core.learning.procedure.Procedure (or from Descent)"
            )
        _check_settings(name, found.Config)
        if not isinstance(found.starts, tuple) or not found.starts:
            raise InputError(
                f"procedure {name!r}: starts = {found.starts!r}; name at least one start, as in "
                'starts = ("log_snr",)'
            )
        return found


def _check_settings(name: str, config: Any) -> None:
    """Raise InputError for a Config from which neither a help text nor a column could be made."""
    if not isinstance(config, type) or not issubclass(config, LearnConfig):
        raise InputError(f"procedure {name!r}: its Config must derive from LearnConfig")
    for one in dataclasses.fields(config):
        if not isinstance(one.default, bool | int | float | str):
            raise InputError(
                f"procedure {name!r}: setting {one.name!r} needs a default that is a number, a "
                'word or a switch; write it as setting(0.5, "what it means")'
            )


procedures = Procedures("procedure")

procedures.register("default", lazily="ld3_dist.core.learning.descent:Descent")
procedures.register("curve", lazily="ld3_dist.core.learning.family:CurveDescent")
procedures.register("paper", lazily="ld3_dist.core.learning.published:Published")


def make_config(procedure: str = "default", **settings: Any) -> LearnConfig:
    """The settings of a procedure: its defaults, with the given ones changed.

    Raises InputError for an unknown procedure, a setting it does not have, and a bad value.
    """
    kind = procedures.get(procedure).Config
    for name in settings:
        if name not in kind.__dataclass_fields__:
            raise no_such_setting(procedure, name)
    return kind(procedure=procedure, **settings)


def no_such_setting(procedure: str, name: str) -> InputError:
    """The error for a setting that a procedure does not have; it says which procedures have it."""
    have = [other for other in procedures if name in procedures.get(other).Config.searchable()]
    if have:
        return InputError(
            f"learn.{name}: procedure {procedure} has no such setting; "
            f"use procedure: {' or '.join(have)}, or remove it"
        )
    return unknown("key of learn", name, procedures.get(procedure).Config.searchable())
