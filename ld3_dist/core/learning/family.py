"""Procedure `curve`: one curve for the grids of several NFEs, learned on all of them at once.

    L = mean over NFEs of log( mean over a batch of dist( student of this NFE, teacher ) )

The logarithm makes every NFE count alike, as a loss at 4 evaluations is easily a hundred times that
at 10. The steps are those of `descent`. In an epoch every pair is visited once by every NFE; a
step is one batch of one NFE, and the NFEs take turns, each with another batch.

A member's best parameters are those with the least geometric mean over the NFEs of the held-out
hard losses. That is also the least mean of log(loss / loss of any baseline).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import MOST, LearnConfig, setting
from .curve import Curve
from .descent import Stepping
from .objective import Objective
from .problem import Problem, Progress


@dataclass(frozen=True, kw_only=True)
class CurveConfig(LearnConfig):
    """Settings of the curve."""

    gamma: float = setting(
        0.0, "radius of the noise ball as r = gamma d / NFE^2; 0 is hard teacher forcing"
    )
    epochs: int = setting(10, "passes over the pairs with every NFE", low=1, below=MOST)
    patience: int = setting(
        10, "epochs without a better held-out loss after which a member stops", low=1, below=MOST
    )
    clip: float = setting(1.0, "largest norm of a gradient", low=1e-300)
    points: int = setting(14, "control points of the curves", low=1, below=65)
    start_time: bool = setting(
        False, "true if sampling starts at a learned, lower noise level instead of t_max"
    )
    final_lr: float = setting(0.1, "fraction that the rates decay to")


@dataclass(frozen=True)
class FamilyProgress(Progress):
    """The state of K members after an epoch, over all NFEs F.

    train, valid, best_valid: geometric means over the NFEs [K]; moved: the mean; best and tableau
    are those of the most evaluations.

    curve: the members' best curves.
    each_train, each_valid, each_best: the losses of every NFE [F, K]; each_moved: its moves.
    """

    curve: Curve
    each_train: Tensor
    each_valid: Tensor
    each_best: Tensor
    each_moved: Tensor

    @property
    def nfes(self) -> tuple[int, ...]:
        """The NFEs that are learned on."""
        return self.curve.nfes

    def at(self, nfe: int) -> Progress:
        """The progress of one of the NFEs, as if it were learned alone."""
        f = self.nfes.index(nfe)
        with torch.no_grad():
            grid, tableau = self.curve.tableau(nfe)
        return Progress(
            self.epoch,
            self.each_train[f],
            self.each_valid[f],
            self.each_moved[f],
            self.each_best[f],
            self.best_epoch,
            grid,
            tableau,
            round(self.network_evals * nfe / sum(self.nfes)),
            self.work * nfe / sum(self.nfes),
            self.last,
            self.snapshot,
        )


class CurveDescent(Stepping[CurveConfig]):
    """The procedure of the curve, see the top of this file."""

    Config = CurveConfig
    version = 2
    starts = ("later:log_snr",)
    family = True

    def __init__(
        self, problem: Problem, config: CurveConfig, objective: Objective | None = None
    ) -> None:
        self.nfes = tuple(sorted(problem.family))
        super().__init__(problem, config, objective)
        shape = tuple(problem.denoiser.shape)
        self.radii = [config.radius(shape, nfe) for nfe in self.nfes]
        K, F = len(problem.knots), len(self.nfes)
        if config.gamma:  # every NFE moves noise of its own: member k at NFE f is number f K + k
            self.moved = self.moved.repeat(F, *[1] * (self.moved.ndim - 1))
        self.prepare(
            {
                "logits": config.lr,
                "tilt": config.lr,
                "offsets": config.lr_times,
                "drift": config.lr_times,
                "begin": config.lr,
                "delay": config.lr,
                "variance": config.lr,
            },
            config.final_lr,
        )
        self.state["each_train"] = torch.full((F, K), math.nan, dtype=torch.float64)

    def make_grids(self, problem: Problem, config: LearnConfig, device: torch.device) -> Curve:
        """The curves nearest to the start grids."""
        assert isinstance(config, CurveConfig)
        return Curve.like(
            problem.denoiser.noise,
            problem.solver,
            problem.family,
            config.coordinate,
            config.offset_window,
            config.points,
            device,
            later=config.start_time or problem.later or False,
        )

    def epoch(self, epoch: int) -> None:
        """One step on every batch with every NFE."""
        k, F = self.members(), len(self.nfes)
        batches, losses = list(self.batches()), []
        for turn in range(len(batches)):
            for f in range(F):
                done = epoch - 1 + (turn * F + f) / (F * len(batches))
                batch = batches[(turn + f) % len(batches)]
                losses.append(self.step(batch[k], k, f, self.rate(done)).mean(1))
        # once an epoch: nothing waits inside it
        means = torch.stack(losses).cpu().double().view(len(batches), F, len(k)).mean(0)
        self.state["each_train"][:, self.active] = means
        self.train_loss = geometric(self.state["each_train"])

    def step(self, batch: Tensor, k: Tensor, f: int, rate: float) -> Tensor:
        """One step of the members k with NFE number f on positions [k, b] of their pairs.

        Returns their losses [k, b] before the step.
        """
        rows = self.pool[k].gather(1, batch)
        soft = self.radii[f] > 0
        own = f * len(self.pool) + k if soft else k
        x = self.moved[own[:, None], batch].requires_grad_(soft)
        _, built = self.grids.tableau(self.nfes[f])
        leaf = built.take(k).leaf(x)
        loss = self.objective.gradients(leaf, x, self.train, self.train_features, rows)
        finite = torch.isfinite(loss).all(1)  # other members have a gradient of zero in this step
        mean = loss.mean(1).clamp_min(1e-30)
        for part in (leaf.evals, leaf.state, leaf.outputs):  # of the logarithm of the batch's mean
            if part.grad is not None:
                part.grad.div_(mean.view(-1, *[1] * (part.ndim - 1)))
        self.grids.zero_grad()
        built.backward(leaf, k, finite)
        self.descend(rate)
        if soft:
            self.move(batch, own, rows, x, loss, self.radii[f])
        return loss

    def validate(self, epoch: int) -> Progress:
        """Measure the present curves on the held-out pairs, at every NFE, and keep the best."""
        each = torch.full((len(self.nfes), len(self.pool)), math.inf, dtype=torch.float64)
        for f, nfe in enumerate(self.nfes):
            with torch.no_grad():
                tableau = self.grids.tableau(nfe)[1]
            each[f, self.active] = self.hard_loss(tableau.take(self.active))
        self.charge(epoch)
        valid = geometric(each)
        now = self.grids.values() | {"each": each.T.clone()}
        if not self.best:
            self.best = {name: value.clone() for name, value in now.items()}
            self.best |= {"valid": valid.clone(), "epoch": torch.zeros(len(valid)).long()}
        better = valid < self.best["valid"]
        now |= {"valid": valid, "epoch": torch.full((len(valid),), epoch)}
        for name, value in now.items():
            self.best[name][better] = value[better]
        stalled = epoch - self.best["epoch"] >= self.config.patience
        self.active = [k for k in self.active if not stalled[k]]
        return self.family_progress(epoch, each)

    def family_progress(self, epoch: int, each: Tensor) -> FamilyProgress:
        """The FamilyProgress that is yielded after an epoch."""
        best = {name: value.clone() for name, value in self.best.items()}
        curve = self.grids.copy().set(best)
        moved = self.lengths().view(-1, len(self.pool)).expand(len(self.nfes), -1)
        with torch.no_grad():
            grid, tableau = curve.tableau(max(self.nfes))
        return FamilyProgress(
            epoch,
            self.train_loss.clone(),
            geometric(each),
            moved.mean(0),
            best["valid"],
            best["epoch"],
            grid,
            tableau,
            self.network_evals,
            self.work.clone(),
            self.last.clone(),
            self.snapshot,
            curve,
            self.state["each_train"].clone(),
            each,
            best["each"].T,
            moved,
        )


def geometric(each: Tensor) -> Tensor:
    """Geometric mean over the NFEs of losses [F, K]; infinite if one of them is."""
    return each.clamp_min(1e-300).log().mean(0).exp()
