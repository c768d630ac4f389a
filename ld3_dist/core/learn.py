"""LD3: gradient descent on the grid of a solver (arXiv 2405.15506), for K members at once.

Teacher Psi*, student Psi_xi, soft teacher forcing in unit-variance noise:

    L(xi) = E_{x_T} min_{x' in Ball(x_T, r)} d( Psi_xi(x'), Psi*(x_T) ),      r = gamma * d / NFE^2      (section 3.2)

Every iteration differentiates the distance through the whole sampler with respect to the grid *and* to x'. The grid
takes a step of Adam; x' takes a step down its gradient, is projected back onto the ball, and keeps the move only where
it lowers that sample's loss. Selection uses the *hard* loss (r = 0) on held-out pairs, and counts the start as a
candidate: what is learned is never worse than what it started from.

K members (start grids, seeds) share every network call. Member k draws its batches from a generator of its own and has
its own optimiser state, so packing changes nothing but the speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .denoiser import Condition, Denoiser, map_condition
from .distance import Distance
from .errors import InputError, unknown
from .grid import Grid
from .learnable import COORDINATES, LearnableGrid
from .sample import sample, sample_generator
from .solver import Solver, Tableau


@dataclass(frozen=True)
class Pairs:
    """What the teacher made: unit-variance noise [M, *shape], decoded outputs [M, …], conditions of M rows."""

    noise: Tensor
    target: Tensor
    condition: Condition = None

    def __post_init__(self) -> None:
        if len(self.noise) != len(self.target):
            raise InputError(f"pairs: {len(self.noise)} noises but {len(self.target)} targets")

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, index: Tensor | slice) -> Pairs:
        return Pairs(self.noise[index], self.target[index], map_condition(lambda c: c[index], self.condition))

    def to(self, device: torch.device | str) -> Pairs:
        """The same pairs on a device."""
        return Pairs(
            self.noise.to(device), self.target.to(device), map_condition(lambda c: c.to(device), self.condition)
        )


@dataclass(frozen=True)
class LearnConfig:
    """How to learn. Rates are Adam's: of gap logits, offsets, coefficients; lr_noise is a fraction of the radius."""

    gamma: float = 0.001
    coordinate: str = "lambda"
    offset_window: float = 0.5
    coefficients: bool = False
    lr: float = 0.1
    lr_times: float = 0.1
    lr_coefficients: float = 0.01
    lr_noise: float = 0.3
    final_lr: float = 0.02
    epochs: int = 40
    batch: int = 10
    patience: int = 20
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "seed" or isinstance(value, str | bool):
                continue
            low_ok = value > 0 if field.name in ("epochs", "batch", "patience", "clip") else value >= 0
            if not (math.isfinite(value) and low_ok):
                raise InputError(f"learn.{field.name} = {value}: must be finite and not negative (counts: at least 1)")
        if self.coordinate not in COORDINATES:
            raise unknown("learn.coordinate", self.coordinate, COORDINATES)
        if self.offset_window >= 1:
            raise InputError(f"learn.offset_window = {self.offset_window}: must lie in [0, 1)")

    def radius(self, shape: tuple[int, ...], nfe: int) -> float:
        """r = gamma d / NFE^2, in unit-variance noise."""
        return self.gamma * math.prod(shape) / nfe**2


@dataclass(frozen=True)
class Progress:
    """State after an epoch (0: the start). Losses [K]; best grid and tableau [K, …] by held-out hard loss."""

    epoch: int
    train: Tensor
    valid: Tensor
    best_valid: Tensor
    best_epoch: Tensor
    best: Grid
    tableau: Tableau
    network_evals: int
    """Network evaluations spent so far, in samples."""


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
) -> Iterator[Progress]:
    """Learn K schedules; yields after every epoch, first the start itself.

    Args:
        knots: start grids as times [K, N+1] (or [N+1] for one member).
        train, valid: pairs; where `subsets` [K, M] is given, member k trains on the pairs train[subsets[k]].
        distance: compares decoded samples with targets, per sample.
        nfe: evaluations, if fewer than the solver's stages times N.
        seeds: one seed per member, for the order of its batches; config.seed for all if not given.

    Raises:
        InputError: fewer than two training pairs or no held-out pair, shapes that do not fit, bad settings.
    """
    config = config or LearnConfig()
    knots = knots.reshape(-1, knots.shape[-1])
    session = Session(denoiser, solver, knots, train, valid, distance, config, nfe, seeds, subsets)
    yield session.validate(0)
    for epoch in range(1, config.epochs + 1):
        for batch in session.batches():
            session.step(batch, session.rate(epoch))
        yield session.validate(epoch)
        if not session.active:
            return


class Session:
    """The state of one run of `learn`: parameters, optimiser, moved noise and the best so far."""

    def __init__(self, denoiser, solver, knots, train, valid, distance, config, nfe, seeds, subsets) -> None:
        if len(train) < 2 or len(valid) < 1:
            found = f"{len(train)} and {len(valid)}"
            raise InputError(f"learning needs at least 2 training and 1 held-out pair, got {found}")
        self.denoiser, self.solver, self.distance, self.config = denoiser, solver, distance, config
        K, device = len(knots), train.noise.device
        self.nfe = nfe or solver.stages * (knots.shape[1] - 1)
        self.radius = config.radius(denoiser.shape, self.nfe)
        home = device if device.type == "cuda" else torch.device("cpu")  # where float64 scalars are cheap
        self.grids = LearnableGrid(
            denoiser.noise, solver, knots, self.nfe, config.coordinate, config.offset_window, config.coefficients, home
        )
        rates = {"logits": config.lr, "offsets": config.lr_times, "corrections": config.lr_coefficients}
        learned = [(rates[n], p) for n, p in self.grids.named_parameters() if p.requires_grad]
        groups = [{"params": [p], "lr": rate, "base": rate} for rate, p in learned]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.generators = [sample_generator(s, 0, "batches") for s in (seeds or [config.seed] * K)]
        if len(self.generators) != K:
            raise InputError(f"{len(self.generators)} seeds for {K} members: need one each")
        self.pool = torch.arange(len(train)).expand(K, -1) if subsets is None else subsets
        if self.pool.ndim != 2 or len(self.pool) != K or int(self.pool.min()) < 0 or int(self.pool.max()) >= len(train):
            raise InputError(
                f"subsets {list(self.pool.shape)}: need [{K}, M] of indices below {len(train)}, a row per member"
            )
        self.train, self.valid, self.scale = train, valid, denoiser.noise.prior_scale
        self.moved = train.noise[self.pool]  # [K, M, *shape], x' in unit-variance noise
        self.train_features, self.valid_features = distance.features(train.target), distance.features(valid.target)
        self.active = list(range(K))
        self.network_evals = 0
        self.train_loss = torch.full((K,), math.nan, dtype=torch.float64)
        self.best: dict[str, Tensor] = {}

    def rate(self, epoch: int) -> float:
        """Cosine decay from 1 to final_lr."""
        low = self.config.final_lr
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / max(self.config.epochs, 1)))

    def batches(self) -> Iterator[Tensor]:
        """Positions [K, b] into each member's pairs, every pair once an epoch."""
        M = self.pool.shape[1]
        order = torch.stack([torch.randperm(M, generator=g) for g in self.generators])
        self.epoch_loss, self.epoch_batches = torch.zeros((), dtype=torch.float64), 0
        yield from order.split(min(self.config.batch, M), dim=1)

    def losses(self, tableau: Tableau, x: Tensor, pairs: Pairs, features: list[Tensor], rows: Tensor) -> Tensor:
        """Distances [K, b] of the students from noise x [K, b, *shape] to the targets of `rows` [K, b]."""
        flat = rows.flatten()
        condition = map_condition(lambda c: c[flat.to(c.device)], pairs.condition)
        x_0 = sample(self.denoiser, tableau, self.scale * x, condition)
        self.network_evals += flat.numel() * tableau.nfe
        made = self.distance.features(self.denoiser.decode(x_0.flatten(0, 1)))
        return self.distance.between(made, [f[flat.to(f.device)] for f in features]).view(rows.shape)

    def step(self, batch: Tensor, rate: float) -> None:
        """One iteration: gradients for grid and x', a step of Adam, a move of the noise where it helps."""
        k = torch.tensor(self.active)
        batch, members = batch[k], k[:, None]
        rows = self.pool[k].gather(1, batch)
        soft = self.radius > 0
        x = self.moved[members, batch].requires_grad_(soft)
        _, built = self.grids.tableau()
        parts = (built.evals, built.state, built.outputs)
        leaf = Tableau(*(part.detach()[k].to(x.device).requires_grad_() for part in parts))
        loss = self.losses(leaf, x, self.train, self.train_features, rows)
        finite = torch.isfinite(loss.detach()).all(1)  # a member whose loss is not finite sits this step out
        torch.where(finite[:, None], loss, 0.0).mean(1).sum().backward()
        self.descend(built, leaf, k, finite, rate)
        if soft:
            self.move(members, batch, rows, x, loss.detach())
        self.epoch_loss = self.epoch_loss + loss.detach().mean(1).double()
        self.epoch_batches += 1

    def descend(self, built: Tableau, leaf: Tableau, k: Tensor, finite: Tensor, rate: float) -> None:
        """Carry the gradients from the table to the parameters; clip per member; step."""
        self.optimizer.zero_grad()
        wholes, grads = [], []
        for whole, part in ((built.evals, leaf.evals), (built.state, leaf.state), (built.outputs, leaf.outputs)):
            if whole.requires_grad and part.grad is not None:
                grad = part.grad * finite.view(-1, *[1] * (part.ndim - 1))
                wholes.append(whole)
                grad = torch.nan_to_num(grad).to(whole)
                grads.append(torch.zeros_like(whole).index_copy(0, k.to(whole.device), grad))
        torch.autograd.backward(wholes, grads)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
            (p,) = group["params"]
            norm = p.grad.flatten(1).norm(dim=1).clamp_min(1e-30)
            p.grad.mul_((self.config.clip / norm).clamp_max(1.0).view(-1, *[1] * (p.ndim - 1)))
        self.optimizer.step()

    @torch.no_grad()
    def move(self, members: Tensor, batch: Tensor, rows: Tensor, x: Tensor, before: Tensor) -> None:
        """x' takes a step of lr_noise * r down its gradient, back onto the ball; kept where the loss has fallen."""
        assert x.grad is not None
        origin = self.train.noise[rows]
        flat = lambda v: v.flatten(2)
        direction = flat(torch.nan_to_num(x.grad))
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        away = flat(x - origin) - self.config.lr_noise * self.radius * direction
        away = away * (self.radius / away.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
        trial = origin + away.view_as(x)
        _, tableau = self.grids.tableau()
        k = members[:, 0]
        tableau = Tableau(tableau.evals[k], tableau.state[k], tableau.outputs[k])
        lower = self.losses(tableau, trial, self.train, self.train_features, rows) < before
        self.moved[members, batch] = torch.where(lower.view(*lower.shape, *[1] * (x.ndim - 2)), trial, x)

    @torch.no_grad()
    def validate(self, epoch: int) -> Progress:
        """Hard loss on the held-out pairs; keeps the best of every member that still improves."""
        grid, tableau = self.grids.tableau()
        K = len(grid.knots)
        valid = torch.full((K,), math.inf, dtype=torch.float64)
        k = torch.tensor(self.active)
        part = Tableau(tableau.evals[k], tableau.state[k], tableau.outputs[k])
        chunks = torch.arange(len(self.valid)).split(max(1, self.config.batch * 5))
        total = torch.zeros(len(k), dtype=torch.float64)
        for chunk in chunks:
            rows = chunk.expand(len(k), -1)
            loss = self.losses(part, self.valid.noise[rows], self.valid, self.valid_features, rows)
            total += loss.sum(1).double().cpu()
        valid[k] = torch.nan_to_num(total / len(self.valid), nan=math.inf, posinf=math.inf)
        if epoch:
            self.train_loss[k] = self.epoch_loss.cpu() / self.epoch_batches
        self.keep(epoch, valid, grid, tableau)
        best = {name: value.clone() for name, value in self.best.items()}
        return Progress(
            epoch, self.train_loss.clone(), valid, best["valid"], best["epoch"],
            Grid(best["knots"], best["evals"]), Tableau(best["evals"], best["state"], best["outputs"]),
            self.network_evals,
        )  # fmt: skip

    def keep(self, epoch: int, valid: Tensor, grid: Grid, tableau: Tableau) -> None:
        """Record improvements; a member without one for `patience` epochs stops."""
        now = {"knots": grid.knots, "evals": grid.evals, "state": tableau.state, "outputs": tableau.outputs}
        now = {name: value.detach().cpu() for name, value in now.items()}
        if not self.best:
            self.best = {name: value.clone() for name, value in now.items()}
            self.best |= {"valid": valid.clone(), "epoch": torch.zeros(len(valid), dtype=torch.long)}
        better = valid < self.best["valid"]
        for name, value in now.items():
            self.best[name][better] = value[better]
        self.best["valid"][better] = valid[better]
        self.best["epoch"][better] = epoch
        stalled = epoch - self.best["epoch"] >= self.config.patience
        self.active = [i for i in self.active if not stalled[i]]
