"""Our procedure: Adam with a whole matrix of second moments, with cosine decay; noise moves at no
extra cost.

Every iteration differentiates the distance through the whole sampler with respect to the grid *and*
to x'. What is learned of a member is some twenty numbers that hang together (a knot moves, and all
weights and times after it have to follow), so it can afford what networks cannot: with g its
gradient in units of the rates,

    m = mean(g),    C = mean(g g^T) + FLOOR tr(C) I,    parameters -= rate C^(-1/2) m      means
                    forget by MEMORY a step

which is Adam (Kingma & Ba 2015, arXiv 1412.6980) with the full matrix of AdaGrad (Duchi et al.
2011, section 1.1) for its diagonal: it goes as far along a narrow valley as across. After n steps C
is still its own diagonal by a share of MEMORY^n: along what a few gradients have not shown it would
hardly move. Gauss-Newton, with random probes for its matrix, was tried on two cells of digits: at
best as good as plain Adam, for a third more time.

x' takes a step down its gradient and is projected back onto the ball. Whether the move is kept is
decided at the sample's next visit, by the loss computed there anyway: where it has not fallen, x'
goes back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import LearnConfig, setting
from .objective import Objective, clipped
from .procedure import Problem, Procedure

MEMORY = 0.9
"""Weight in the means of what was seen a step ago."""
FLOOR = 1e-6
"""Least second moment in any direction, as a share of those of all."""


@dataclass(frozen=True, kw_only=True)
class DescentConfig(LearnConfig):
    """Settings of the default procedure."""

    coefficients: bool = setting(False, "were the solver's coefficients learned too")
    lr_coefficients: float = setting(0.03, "learning rate of the corrections to the coefficients")
    final_lr: float = setting(0.1, "fraction that the rates decay to")


class Descent(Procedure[DescentConfig]):
    """The default procedure."""

    Config = DescentConfig
    version = 1
    starts = ("log_snr", "optimal-steps")

    def __init__(
        self, problem: Problem, config: DescentConfig, objective: Objective | None = None
    ) -> None:
        self.learns_coefficients = config.coefficients
        super().__init__(problem, config, objective)
        rates = {
            "logits": config.lr,
            "offsets": config.lr_times,
            "corrections": config.lr_coefficients,
        }
        self.learned = [(p, rates[n]) for n, p in self.grids.named_parameters() if p.requires_grad]
        g = self.gradient()
        self.state = {
            "weight": g.new_zeros(()), "first": g, "second": g[:, :, None] * g[:, None],
            # x' to go back to where its loss, `known`, is not undercut at the next visit
            "kept": self.moved.clone(), "known": self.moved.new_full(self.pool.shape, math.inf),
        }  # fmt: skip

    def rate(self, epoch: int) -> float:
        """Cosine decay from 1 to final_lr."""
        low = self.config.final_lr
        return low + (1 - low) * 0.5 * (
            1 + math.cos(math.pi * (epoch - 1) / max(self.config.epochs, 1))
        )

    def epoch(self, epoch: int) -> None:
        """Every pair of every active member once."""
        k, losses = self.members(), []
        for batch in self.batches():
            losses.append(self.step(batch[k], k, self.rate(epoch)).mean(1))
        total = torch.zeros(len(self.active), dtype=torch.float64)
        for loss in torch.stack(losses).cpu().double():  # once an epoch: nothing waits inside it
            total = total + loss
        self.train_loss[self.active] = total / len(losses)

    def step(self, batch: Tensor, k: Tensor, rate: float) -> Tensor:
        """One iteration of the members k on positions [k, b] of their pairs; their losses [k, b]
        before it.
        """
        rows = self.pool[k].gather(1, batch)
        soft = self.radius > 0
        x = self.moved[k[:, None], batch].requires_grad_(soft)
        _, built = self.grids.tableau()
        leaf = built.take(k).leaf(x)
        loss = self.objective.gradients(leaf, x, self.train, self.train_features, rows)
        finite = torch.isfinite(loss).all(1)  # a member whose loss is not finite sits this step out
        self.grids.zero_grad()
        built.backward(leaf, k, finite)
        self.descend(rate)
        if soft:
            self.move(batch, k, rows, x, loss)
        return loss

    def gradient(self) -> Tensor:
        """Every member's gradient [K, P] with respect to its parameters in units of their rates;
        zero where none is.
        """
        grad = lambda p: (
            torch.zeros_like(p) if p.grad is None else clipped(p.grad, self.config.clip)
        )
        return torch.cat([grad(p).flatten(1) * rate for p, rate in self.learned], 1)

    @torch.no_grad()
    def descend(self, rate: float) -> None:
        """A step of every member down its gradient, see the top of this file."""
        g = self.gradient()
        for name, seen in (("weight", 1.0), ("first", g), ("second", g[:, :, None] * g[:, None])):
            self.state[name] = MEMORY * self.state[name] + seen
        m, C = (self.state[name] / self.state["weight"] for name in ("first", "second"))
        diagonal = torch.diag_embed(torch.diagonal(C, dim1=-2, dim2=-1))
        C = torch.lerp(C, diagonal, 1 - (1 - MEMORY) * self.state["weight"])
        steps = (inverse_root(C) @ m[..., None])[..., 0].split(
            [p[0].numel() for p, _ in self.learned], 1
        )
        for (p, unit), step in zip(self.learned, steps, strict=True):
            p.sub_(rate * unit * step.view_as(p))

    @torch.no_grad()
    def move(self, batch: Tensor, k: Tensor, rows: Tensor, x: Tensor, loss: Tensor) -> None:
        """Judge the move that led to x; from where it is kept, a step of lr_noise * r down the
        gradient.
        """
        assert x.grad is not None
        at, kept, known = (k[:, None], batch), self.state["kept"], self.state["known"]
        wide = lambda v: v.view(*v.shape, *[1] * (x.ndim - 2))
        flat = lambda v: v.flatten(2)
        good = loss <= known[at]
        start = self.train.noise[rows]
        direction = flat(torch.nan_to_num(x.grad))
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        away = flat(x - start) - self.config.lr_noise * self.radius * direction
        away = away * (self.radius / away.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(
            1.0
        )
        kept[at] = torch.where(wide(good), x, kept[at])
        self.moved[at] = torch.where(wide(good), start + away.view_as(x), kept[at])
        known[at] = torch.where(good, loss, math.inf)


def inverse_root(C: Tensor) -> Tensor:
    """(C + FLOOR tr(C) I)^(-1/2) of symmetric matrices [K, P, P] without negative eigenvalues."""
    trace = torch.diagonal(C, dim1=-2, dim2=-1).sum(-1).clamp_min(1e-60)[:, None, None]
    C = C / trace + FLOOR * torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    if C.device.type != "cpu":
        return newton_schulz(C) / trace.sqrt()  # eigenvalues would stall the queue
    values, vectors = torch.linalg.eigh(C)
    return (vectors * values[:, None].rsqrt()) @ vectors.mT / trace.sqrt()


def newton_schulz(C: Tensor) -> Tensor:
    """C^(-1/2) of symmetric matrices with eigenvalues from FLOOR to 1, by products alone (Higham
    2008, eq. 6.35).
    """
    eye = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    root, other = eye.expand_as(C), C
    for _ in range(25):  # the least eigenvalue of `other` grows by 9/4 a turn until it is near 1
        turn = 1.5 * eye - 0.5 * root @ other
        root, other = turn @ root, other @ turn
    return root
