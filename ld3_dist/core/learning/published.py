"""The published LD3 procedure, for comparison (arXiv 2405.15506, section 4 and its code).

It runs rounds over the training pairs in batches of two. In the first rounds only the knots learn,
later the network times too. Every batch makes one step of each kind:

    gap logits   RMSprop with rate lr and momentum 0.9
    offsets      SGD with rate lr_times / N
    noise x'     SGD with rate lr_noise / N, projected onto the ball, kept if the sample's loss fell

The hard loss on the held-out pairs is measured after every batch. After `patience` batches without
a better one, the best parameters are restored and the rates are multiplied by 0.8. Every round
starts from the best parameters; lr_noise is halved after a round in which no noise moved.

Five defects of the published code are not taken over. Here the bound on the offsets follows from
the grid, not from the logits. Gradients reach every coefficient. NFE counts network calls. Held-out
noise does not move, so the moves of training noise decide when lr_noise is halved. Every validation
sees all held-out pairs, not just their first batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import LearnConfig, setting
from .learnable import LearnableGrid
from .objective import Objective, clipped
from .problem import Problem, Progress
from .procedure import Procedure

MOMENTUM, SMOOTHING, DECAY, NOISE_DECAY = 0.9, 0.99, 0.8, 0.5
LEAST_LR, LEAST_LR_TIMES, LEAST_HITS = 5e-5, 1e-6, 5
"""The smallest rates; a member ends after LEAST_HITS reductions at the smallest lr_times."""


class PublishedGrid(LearnableGrid):
    """A grid whose offsets are in units of the coordinate.

    They are at most `window` times the grid's smallest gap; the first evaluation has none.
    """

    def times(self, u: Tensor, at: Tensor) -> Tensor:
        """Network times in the coordinate."""
        bound = self.window * u.detach().diff(dim=-1).amin(-1, keepdim=True)
        offsets = torch.maximum(torch.minimum(self.offsets.double(), bound), -bound)
        return at + torch.cat([torch.zeros_like(offsets[:, :1]), offsets[:, 1:]], -1)


@dataclass(frozen=True, kw_only=True)
class PublishedConfig(LearnConfig):
    """Settings of the published procedure, with the published values."""

    lr: float = setting(0.005, "learning rate of the gap logits", low=1e-300)
    lr_times: float = setting(0.1, "learning rate of the offsets, times N")
    lr_noise: float = setting(12.0, "learning rate of the noise, times N")
    epochs: int = setting(7, "rounds over the training pairs", low=1)
    knots_only: int = setting(2, "first rounds, in which the network times do not learn")
    batch: int = setting(2, "training pairs of one step", low=1)
    patience: int = setting(
        5, "batches without a better held-out loss until the best parameters come back", low=1
    )

    def samples(self, train: int, valid: int) -> int:
        """As LearnConfig's, plus a check of every move of noise and a validation per batch."""
        moves = 1 if self.gamma else 0
        return self.epochs * (train * (3 + moves) + -(-train // self.batch) * valid) + valid


class Published(Procedure[PublishedConfig]):
    """The published procedure; every member has its own rates, patience and best parameters."""

    Grid = PublishedGrid
    Config = PublishedConfig
    version = 1
    starts = ("log_snr",)

    def __init__(
        self, problem: Problem, config: PublishedConfig, objective: Objective | None = None
    ) -> None:
        super().__init__(problem, config, objective)
        K, N = self.grids.logits.shape
        home = self.grids.logits.device
        column = lambda value: torch.full((K, 1), float(value), dtype=torch.float64, device=home)
        self.state = {
            "lr": column(config.lr),
            "lr_times": column(config.lr_times / N),
            "lr_noise": column(config.lr_noise / N),
            "square": torch.zeros_like(self.grids.logits),
            "momentum": torch.zeros_like(self.grids.logits),
            "worse": column(0),
            "hits": column(0),
            "logits": self.grids.logits.detach().clone(),
            "offsets": self.grids.offsets.detach().clone(),
        }

    def epoch(self, epoch: int) -> None:
        """One round over the training pairs."""
        if epoch > 1:
            self.reload(torch.ones_like(self.state["worse"], dtype=torch.bool))
        moves = torch.zeros(len(self.state["lr"]), dtype=torch.bool)
        total, batches = torch.zeros(len(moves), dtype=torch.float64), 0
        for batch in self.batches():
            k = self.members()
            loss, moved = self.batch(batch[k], k, knots_only=epoch <= self.config.knots_only)
            total[self.active] += loss.mean(1).cpu().double()
            moves[self.active] |= moved.any(1).cpu()
            batches += 1
            self.examine(epoch)
            if not self.active:
                return
        self.train_loss[self.active] = total[self.active] / batches
        halved = torch.where(moves[:, None].to(self.state["lr"].device), 1.0, NOISE_DECAY)
        self.state["lr_noise"] = self.state["lr_noise"] * halved

    def batch(self, batch: Tensor, k: Tensor, knots_only: bool) -> tuple[Tensor, Tensor]:
        """One step of the active members k on positions [k, b] of their pairs.

        Returns their losses before the step [k, b], and booleans [k, b] for samples whose noise
        moved.
        """
        rows = self.pool[k].gather(1, batch)
        x = self.moved[k[:, None], batch].requires_grad_(self.radius > 0)
        grids, state = self.grids, self.state
        _, built = grids.tableau()
        leaf = built.take(k).leaf(x)
        loss = self.objective.gradients(leaf, x, self.train, self.train_features, rows)
        grids.zero_grad()
        built.backward(leaf, k)
        with torch.no_grad():
            on = torch.zeros_like(state["worse"]).index_fill(0, k.to(state["worse"].device), 1.0)
            g = clipped(grids.logits.grad, self.config.clip)
            state["square"] = torch.where(
                on > 0, state["square"].lerp(g.square(), 1 - SMOOTHING), state["square"]
            )
            step = g / (state["square"].sqrt() + 1e-8)
            state["momentum"] = torch.where(
                on > 0, MOMENTUM * state["momentum"] + step, state["momentum"]
            )
            grids.logits.sub_(on * state["lr"] * state["momentum"])
            if not knots_only and grids.offsets.grad is not None:
                grids.offsets.sub_(
                    on * state["lr_times"] * clipped(grids.offsets.grad, self.config.clip)
                )
        moved = (
            self.move(batch, k, rows, x, loss)
            if self.radius > 0
            else torch.zeros_like(loss, dtype=torch.bool)
        )
        return loss, moved

    @torch.no_grad()
    def move(self, batch: Tensor, k: Tensor, rows: Tensor, x: Tensor, before: Tensor) -> Tensor:
        """Make a step of SGD on the noise, project it onto the ball, and keep it if the loss fell.

        The loss is compared with `before`, the loss before the batch. Returns booleans [k, b] for
        the samples whose step was kept.
        """
        assert x.grad is not None
        rate = self.state["lr_noise"].to(x)[k].view(-1, *[1] * (x.ndim - 1))
        origin = self.train.noise[rows]
        away = (x - rate * torch.nan_to_num(x.grad) - origin).flatten(2)
        length = away.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        away = away * (self.radius / length).clamp_max(1.0)
        trial = origin + away.view_as(x)
        tableau = self.grids.tableau()[1].take(k)
        after = self.objective.losses(tableau, trial, self.train, self.train_features, rows)
        lower = after < before
        wide = lower.view(*lower.shape, *[1] * (x.ndim - 2))
        self.moved[k[:, None], batch] = torch.where(wide, trial, x)
        return lower

    @torch.no_grad()
    def examine(self, epoch: int) -> None:
        """Measure the held-out loss after a batch.

        Members without a better one for `patience` batches go back to their best parameters and
        continue with smaller rates.
        """
        state = self.state
        grid, tableau = self.grids.tableau()
        valid = torch.full((len(grid.knots),), torch.inf, dtype=torch.float64)
        valid[self.active] = self.hard_loss(tableau.take(self.active))
        self.charge(epoch)
        better = self.keep(epoch, valid, grid, tableau).to(state["lr"].device)[:, None]
        state["logits"] = torch.where(better, self.grids.logits, state["logits"])
        state["offsets"] = torch.where(better, self.grids.offsets, state["offsets"])
        state["worse"] = torch.where(better, 0.0, state["worse"] + 1)
        tired = state["worse"] >= self.config.patience
        self.reload(tired)
        state["lr"] = torch.where(tired, (DECAY * state["lr"]).clamp_min(LEAST_LR), state["lr"])
        if epoch > self.config.knots_only:
            lower = (DECAY * state["lr_times"]).clamp_min(LEAST_LR_TIMES)
            state["lr_times"] = torch.where(tired, lower, state["lr_times"])
            state["hits"] = state["hits"] + (tired & (lower <= LEAST_LR_TIMES))
        self.active = [k for k in self.active if state["hits"][k] < LEAST_HITS]

    @torch.no_grad()
    def reload(self, which: Tensor) -> None:
        """Restore the best parameters of some members, booleans [K, 1]."""
        self.grids.logits.copy_(torch.where(which, self.state["logits"], self.grids.logits))
        self.grids.offsets.copy_(torch.where(which, self.state["offsets"], self.grids.offsets))
        self.state["worse"] = torch.where(which, 0.0, self.state["worse"])

    def validate(self, epoch: int) -> Progress:
        """The start's held-out loss at epoch 0; after a round, the best so far.

        `examine` has measured every batch of the round already.
        """
        if epoch:
            return self.progress(epoch, self.best["valid"].clone())
        return super().validate(epoch)
