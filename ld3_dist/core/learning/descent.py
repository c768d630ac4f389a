"""The default procedure: Adam with a full matrix of second moments; the noise x' moves for free.

Let g be a member's gradient, in units of the learning rates. Every step updates running means,
which keep the fraction MEMORY of their past, and then the parameters:

    m = mean(g),    C = mean(g g^T),    parameters -= rate (C + FLOOR tr(C) I)^(-1/2) m

This is Adam (Kingma & Ba 2015, arXiv 1412.6980) with the full matrix of AdaGrad (Duchi et al. 2011,
section 1.1) in place of a diagonal, so that steps along a narrow valley are as long as steps across
it. A member has only some twenty parameters, so the matrix is cheap. It pays because they depend on
each other: when a knot moves, all later weights and times must follow. `rate` decays as a cosine.

Early on, C mixes in its own diagonal with weight MEMORY^n; otherwise directions that few gradients
have covered would barely move. Gauss-Newton with random probes for its matrix was tried on two
cells of digits: it was at best as good as plain Adam and took a third more time.

The same backward pass gives the gradient with respect to x'. x' takes a step down that gradient, of
length

    min(lr_noise * r, REACH * l / |dl/dx'|)

and is projected back onto the ball. l / |dl/dx'| is the step of Polyak (1969): a loss l that fell
linearly would be 0 there. At the paper's radius it is ten to a thousand times as long as the first
length, which decides there. In a large ball the first length alone leads too far: most moves would
be refused, and the parameters would learn from each of them until it is. The sample's next visit
computes its loss anyway, and decides: if the loss has not fallen, x' returns to where it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .config import MOST, LearnConfig, setting
from .learnable import LATER
from .objective import Objective, clipped
from .problem import Problem
from .procedure import Procedure, Settings

MEMORY = 0.9
"""The fraction of their past that the running means keep at every step."""
FLOOR = 1e-6
"""The least second moment in any direction, as a fraction of the trace of C."""
REACH = 0.25
"""The longest move of a sample's noise, as a fraction of the Polyak step."""


class Stepping(Procedure[Settings]):
    """Steps of parameters and noise, see the top of this file; `prepare` comes before the first."""

    final_lr = 0.1
    """The fraction that the rates decay to."""
    memory: ClassVar[float] = MEMORY
    """The fraction of their past that the running means keep."""

    @classmethod
    def starts_for(cls, config: Settings, later: bool = True) -> tuple[str, ...]:
        """The starts; the grids alone if all members learn a start time, or if none shall."""
        if not later or vars(config).get("start_time", False):
            return tuple(dict.fromkeys(name.removeprefix(LATER) for name in cls.starts))
        return cls.starts

    def prepare(self, rates: Mapping[str, float], final_lr: float) -> None:
        """Begin with means of zero; `rates` are those of the parameters, by name."""
        self.final_lr = final_lr
        self.learned = [(p, rates[n]) for n, p in self.grids.named_parameters() if p.requires_grad]
        g = self.gradient()
        self.state = {
            "weight": g.new_zeros(()), "first": g, "second": g[:, :, None] * g[:, None],
            # the last accepted x', restored if the next visit finds no lower loss than `known`
            "kept": self.moved.clone(),
            "known": self.moved.new_full(self.moved.shape[:2], math.inf),
        }  # fmt: skip

    def rate(self, epochs: float) -> float:
        """Cosine decay from 1 to final_lr; so many epochs are over."""
        low = self.final_lr
        progress = epochs / max(self.config.epochs, 1)
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))

    def accepted(self) -> Tensor:
        """The x' with the lowest loss known; `moved` is the next one to try."""
        return self.state["kept"]

    def gradient(self) -> Tensor:
        """Every member's gradient [K, P], in units of the learning rates.

        It is zero for parameters that have no gradient.
        """
        grad = lambda p: (
            torch.zeros_like(p) if p.grad is None else clipped(p.grad, self.config.clip)
        )
        return torch.cat([grad(p).flatten(1) * rate for p, rate in self.learned], 1)

    @torch.no_grad()
    def descend(self, rate: float) -> None:
        """Update the running means and the parameters of every member, see the top of this file."""
        g = self.gradient()
        for name, seen in (("weight", 1.0), ("first", g), ("second", g[:, :, None] * g[:, None])):
            self.state[name] = self.memory * self.state[name] + seen
        m, C = (self.state[name] / self.state["weight"] for name in ("first", "second"))
        diagonal = torch.diag_embed(torch.diagonal(C, dim1=-2, dim2=-1))
        C = torch.lerp(C, diagonal, 1 - (1 - self.memory) * self.state["weight"])
        steps = (inverse_root(C) @ m[..., None])[..., 0].split(
            [p[0].numel() for p, _ in self.learned], 1
        )
        for (p, unit), step in zip(self.learned, steps, strict=True):
            p.sub_(rate * unit * step.view_as(p))

    @torch.no_grad()
    def move(
        self, batch: Tensor, k: Tensor, rows: Tensor, x: Tensor, loss: Tensor, radius: float
    ) -> None:
        """Judge the move that led to x, and move on.

        If the loss fell, x is accepted, and a step down the gradient gives the next x', see the top
        of this file. If not, x' returns to the last one accepted.

        Args:
            batch, k: positions [k, b] in the pairs of the members k.
            rows: the same samples as indices into the training pairs [k, b].
            x: their noise [k, b, *shape], with its gradient.
            loss: their losses [k, b] at x.
            radius: of the ball.
        """
        assert x.grad is not None
        at, kept, known = (k[:, None], batch), self.state["kept"], self.state["known"]
        wide = lambda v: v.view(*v.shape, *[1] * (x.ndim - 2))
        flat = lambda v: v.flatten(2)
        good = loss <= known[at]
        start = self.train.noise[rows]
        gradient = flat(torch.nan_to_num(x.grad))  # of the mean over a member's samples
        slope = gradient.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        polyak = loss[..., None] / (slope * rows.shape[1])
        step = (REACH * polyak).clamp(0, self.config.lr_noise * radius)
        away = flat(x - start) - step * (gradient / slope)
        length = away.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        away = away * (radius / length).clamp_max(1.0)
        kept[at] = torch.where(wide(good), x, kept[at])
        self.moved[at] = torch.where(wide(good), start + away.view_as(x), kept[at])
        known[at] = torch.where(good, loss, math.inf)


@dataclass(frozen=True, kw_only=True)
class DescentConfig(LearnConfig):
    """Settings of the default procedure."""

    epochs: int = setting(20, "epochs of learning asked for", low=1, below=MOST)
    batch: int = setting(5, "training pairs of one step", low=1, below=MOST)
    coefficients: bool = setting(False, "true if the solver's coefficients are learned too")
    lr_coefficients: float = setting(0.03, "learning rate of the corrections to the coefficients")
    start_time: bool = setting(
        False, "true if sampling starts at a learned, lower noise level instead of t_max"
    )
    final_lr: float = setting(0.1, "fraction that the rates decay to")


class Descent(Stepping[DescentConfig]):
    """The default procedure, see the top of this file."""

    Config = DescentConfig
    version = 1
    starts = ("log_snr", "later:optimal-steps")

    def __init__(
        self, problem: Problem, config: DescentConfig, objective: Objective | None = None
    ) -> None:
        self.learns_coefficients, self.learns_start = config.coefficients, config.start_time
        super().__init__(problem, config, objective)
        self.prepare(
            {
                "logits": config.lr,
                "offsets": config.lr_times,
                "variance": config.lr,
                "corrections": config.lr_coefficients,
            },
            config.final_lr,
        )

    def epoch(self, epoch: int) -> None:
        """One step on every batch, so that every active member sees each of its pairs once."""
        k, losses = self.members(), []
        for batch in self.batches():
            losses.append(self.step(batch[k], k, self.rate(epoch - 1)).mean(1))
        total = torch.zeros(len(self.active), dtype=torch.float64)
        for loss in torch.stack(losses).cpu().double():  # once an epoch: nothing waits inside it
            total = total + loss
        self.train_loss[self.active] = total / len(losses)

    def step(self, batch: Tensor, k: Tensor, rate: float) -> Tensor:
        """One step of the members k on positions [k, b] of their pairs.

        Returns their losses [k, b] before the step.
        """
        rows = self.pool[k].gather(1, batch)
        soft = self.radius > 0
        x = self.moved[k[:, None], batch].requires_grad_(soft)
        _, built = self.grids.tableau()
        leaf = built.take(k).leaf(x)
        loss = self.objective.gradients(leaf, x, self.train, self.train_features, rows)
        finite = torch.isfinite(loss).all(1)  # other members have a gradient of zero in this step
        self.grids.zero_grad()
        built.backward(leaf, k, finite)
        self.descend(rate)
        if soft:
            self.move(batch, k, rows, x, loss, self.radius)
        return loss


def inverse_root(C: Tensor) -> Tensor:
    """(C + FLOOR tr(C) I)^(-1/2) of symmetric, positive semidefinite matrices [K, P, P]."""
    trace = torch.diagonal(C, dim1=-2, dim2=-1).sum(-1).clamp_min(1e-60)[:, None, None]
    C = C / trace + FLOOR * torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    if C.device.type != "cpu":
        return newton_schulz(C) / trace.sqrt()  # eigenvalues would wait for all queued work
    values, vectors = torch.linalg.eigh(C)
    return (vectors * values[:, None].rsqrt()) @ vectors.mT / trace.sqrt()


def newton_schulz(C: Tensor) -> Tensor:
    """C^(-1/2) of symmetric matrices by products alone (Higham 2008, eq. 6.35).

    Their eigenvalues must lie between FLOOR and 1.
    """
    eye = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    root, other = eye.expand_as(C), C
    for _ in range(25):  # each turn multiplies the least eigenvalue of `other` by 9/4, up to 1
        turn = 1.5 * eye - 0.5 * root @ other
        root, other = turn @ root, other @ turn
    return root
