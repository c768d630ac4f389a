"""Our procedure: Adam on gap logits, offsets and corrections, with cosine decay; noise moves at no extra cost.

Every iteration differentiates the distance through the whole sampler with respect to the grid *and* to x'. The grid
takes a step of Adam; x' takes a step down its gradient and is projected back onto the ball. Whether the move is kept is
decided at the sample's next visit, by the loss computed there anyway: where it has not fallen, x' goes back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .objective import clipped
from .session import Session


class Descent(Session):
    """The default procedure."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        config = self.config
        rates = {"logits": config.lr, "offsets": config.lr_times, "corrections": config.lr_coefficients}
        learned = [(rates[n], p) for n, p in self.grids.named_parameters() if p.requires_grad]
        groups = [{"params": [p], "lr": rate, "base": rate} for rate, p in learned]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.kept = self.moved.clone()  # x' to go back to where its loss, `known`, is not undercut at the next visit
        self.known = torch.full(self.pool.shape, math.inf, device=self.device, dtype=self.moved.dtype)

    def rate(self, epoch: int) -> float:
        """Cosine decay from 1 to final_lr."""
        low = self.config.final_lr
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / max(self.config.epochs, 1)))

    def epoch(self, epoch: int) -> None:
        """Every pair of every active member once."""
        k, total, batches = self.members(), torch.zeros((), dtype=torch.float64, device=self.device), 0
        for batch in self.batches():
            loss = self.step(batch[k], k, self.rate(epoch))
            total, batches = total + loss.mean(1).double(), batches + 1
        self.train_loss[self.active] = (total / batches).cpu()

    def step(self, batch: Tensor, k: Tensor, rate: float) -> Tensor:
        """One iteration of the members k on positions [k, b] of their pairs; their losses [k, b] before it."""
        rows = self.pool[k].gather(1, batch)
        soft = self.radius > 0
        x = self.moved[k[:, None], batch].requires_grad_(soft)
        _, built = self.grids.tableau()
        leaf = built.take(k).leaf(x)
        loss = self.objective.gradients(leaf, x, self.train, self.train_features, rows)
        finite = torch.isfinite(loss).all(1)  # a member whose loss is not finite sits this step out
        self.optimizer.zero_grad()
        built.backward(leaf, k, finite)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
            (p,) = group["params"]
            p.grad = clipped(p.grad, self.config.clip)
        self.optimizer.step()
        if soft:
            self.move(batch, k, rows, x, loss)
        return loss

    @torch.no_grad()
    def move(self, batch: Tensor, k: Tensor, rows: Tensor, x: Tensor, loss: Tensor) -> None:
        """Judge the move that led to x; from where it is kept, a step of lr_noise * r down the gradient."""
        assert x.grad is not None
        at = (k[:, None], batch)
        wide = lambda v: v.view(*v.shape, *[1] * (x.ndim - 2))
        flat = lambda v: v.flatten(2)
        good = loss <= self.known[at]
        start = self.train.noise[rows]
        direction = flat(torch.nan_to_num(x.grad))
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        away = flat(x - start) - self.config.lr_noise * self.radius * direction
        away = away * (self.radius / away.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
        kept = torch.where(wide(good), x, self.kept[at])
        self.kept[at] = kept
        self.moved[at] = torch.where(wide(good), start + away.view_as(x), kept)
        self.known[at] = torch.where(good, loss, math.inf)

    def own(self) -> dict[str, Tensor]:
        """Adam's moments and what judges the moves."""
        made = {"kept": self.kept, "known": self.known}
        for i, group in enumerate(self.optimizer.param_groups):
            made |= {f"adam.{i}.{n}": v for n, v in self.optimizer.state.get(group["params"][0], {}).items()}
        return made

    def adopt(self, state: dict[str, Tensor]) -> None:
        """See `own`."""
        self.kept, self.known = state["kept"].to(self.kept), state["known"].to(self.known)
        for i, group in enumerate(self.optimizer.param_groups):
            (p,) = group["params"]
            mine = {n.removeprefix(f"adam.{i}."): v for n, v in state.items() if n.startswith(f"adam.{i}.")}
            self.optimizer.state[p] = {n: v.clone() if n == "step" else v.clone().to(p) for n, v in mine.items()}
