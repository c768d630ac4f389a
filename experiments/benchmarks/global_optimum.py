"""How close LD3 comes to the best schedule there is: a problem small enough to search globally.

A three-component mixture on a line with its exact probability flow as the teacher, 3 and 4
evaluations, hard teacher forcing (gamma = 0), every pair in every loss, so that LD3 and the search
minimise the same function over the same set: knots in lambda, and one network time per evaluation
within half a gap of its nominal place.

The search knows nothing of the learnable grid's parameters: differential evolution over the unit
cube (sorted knots, window fractions), restarted, each end point refined by L-BFGS-B. LD3 is `learn`
from packed starts.

    python experiments/benchmarks/global_optimum.py [SOLVER …]     some ten minutes

With `--default` it is the default procedure that is measured instead, as a user runs it, soft
forcing and all: the former one, the same with other starts and longer, the present one, and that
one longer. The start of the present one that begins later may end below the optimum, which begins
at the highest noise. Three mixtures, six solvers, 3 and 4 evaluations. A mixture whose optimum is
below 1e-6 (an error of 0.001) is as good as solved. What the file has is not measured again.

    python experiments/benchmarks/global_optimum.py --default          some fifteen minutes

Both write results/benchmarks/global_optimum.json, cell by cell, and keep the other's part of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import former
import numpy as np
import torch
from scipy.optimize import differential_evolution, minimize

from ld3_dist.core.distance import make_distance
from ld3_dist.core.grid import Grid, discretize, lam_range
from ld3_dist.core.learning.learn import LearnConfig, Pairs, Problem, learn, make_config
from ld3_dist.core.learning.learnable import GAP_FLOOR
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import Solver, make_solver
from ld3_dist.models import open_model
from ld3_dist.models.analytic.mixture import Mixture, mixture_1d
from ld3_dist.schedule.learning import learning

WINDOW = 0.5
PAIRS = 100
CELLS = [(solver, nfe) for solver in ("dpmpp-2", "ipndm-2") for nfe in (3, 4)]
CONFIG = make_config(
    gamma=0.0,
    offset_window=WINDOW,
    lr=0.03,
    lr_times=0.02,
    final_lr=1e-3,
    epochs=6000,
    batch=PAIRS,
    patience=6000,
)
MIXTURES = (
    "analytic:mixture-1d",
    "analytic:random-mixture?shape=1&components=4&std=0.2&seed=1",
    "analytic:random-mixture?shape=1&components=7&std=0.1&seed=2",
)
SOLVERS = ("ddim", "dpmpp-2", "dpmpp-3", "unipc-2", "unipc-3", "ipndm-2")
FORMER: dict[str, Any] = former.SETTINGS | {"starts": former.STARTS}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": FORMER,
    "160 epochs": FORMER | {"epochs": 160, "patience": 160},
    "four starts": FORMER | {"starts": ["log_snr", "optimal-steps", "tors", "dmn"]},
    "present default": {},
    "present default, 80 epochs": {"epochs": 80, "patience": 80},
}
STARTS = ("log_snr", "karras", "quadratic", "poly-3", "poly-5", "cosine", "beta", "ays-sd15")


def problem(mixture: Mixture | None = None) -> tuple[Mixture, Pairs]:
    """The mixture, and its pairs of unit noise and exact end point."""
    mixture = mixture or mixture_1d(EDM())
    noise = mixture.noise
    x = draw_noise(0, range(PAIRS), (1,)).double()
    return mixture, Pairs(x, mixture.transport(noise.prior_scale * x, noise.t_max, noise.t_min))


def starts(solver: Solver, nfe: int, extra: int = 24) -> torch.Tensor:
    """Hand-made grids and random ones, spread evenly over the simplex of gaps; [K, N+1]."""
    noise, steps = EDM(), solver.steps(nfe)
    low, high = lam_range(noise)
    gaps = np.random.default_rng(0).dirichlet(np.full(steps, 2.0), extra)
    inner = noise.inverse(low + (high - low) * torch.as_tensor(gaps).cumsum(1)[:, :-1])
    ends = [torch.full((extra, 1), end, dtype=torch.float64) for end in (noise.t_max, noise.t_min)]
    made = torch.stack([discretize(noise, steps, name) for name in STARTS])
    return torch.cat([made, torch.cat([ends[0], inner, ends[1]], 1)])


def learned(
    solver: Solver, nfe: int, config: LearnConfig = CONFIG, extra: int = 24
) -> tuple[torch.Tensor, Grid]:
    """Best losses [K] of the packed members, and their grids."""
    mixture, pairs = problem()
    knots = starts(solver, nfe, extra)
    *_, last = learn(
        Problem(mixture, solver, knots, pairs, pairs, make_distance("l2"), nfe=nfe), config
    )
    return last.best_valid, last.best


class Search:
    """The loss as a function of the unit cube."""

    def __init__(self, solver: Solver, nfe: int, mixture: Mixture | None = None) -> None:
        self.solver, self.nfe, self.steps = solver, nfe, solver.steps(nfe)
        self.mixture, self.pairs = problem(mixture)
        self.low, self.high = lam_range(self.mixture.noise)
        self.before, self.after = solver.brackets(nfe)
        self.bounds = [(0.0, 1.0)] * (self.steps - 1 + nfe)

    def grid(self, z: torch.Tensor) -> Grid:
        """z [K, N-1+E] -> the grid: inner knots by their order, then where in its window each
        network time lies.
        """
        noise, one = self.mixture.noise, torch.ones_like(z[:, :1])
        share = torch.cat([0 * one, z[:, : self.steps - 1].sort(1).values, one], 1).diff(dim=1)
        floor = GAP_FLOOR["lambda"]
        u = (
            self.low
            + (self.high - self.low) * (floor + (1 - self.steps * floor) * share).cumsum(1)[:, :-1]
        )
        u = torch.cat([self.low * one, u, self.high * one], 1)
        knots = torch.cat([noise.t_max * one, noise.inverse(u[:, 1:-1]), noise.t_min * one], 1)
        at = noise.lam(self.solver.nominal(noise, knots, self.nfe))
        s = (2 * z[:, self.steps - 1 :] - 1) * WINDOW
        ahead, behind = u[:, self.after] - at, at - u[:, self.before]
        ahead_only = behind <= 1e-12
        move = torch.where(ahead_only, s.abs() * ahead, torch.where(s > 0, s * ahead, s * behind))
        return Grid(knots, noise.inverse(at + move).clamp(noise.t_min, noise.t_max))

    def losses(self, z: torch.Tensor) -> torch.Tensor:
        """Mean squared distance to the end points, [K]."""
        tableau = self.solver.tableau(self.mixture.noise, self.grid(z))
        x_0 = sample(self.mixture, tableau, self.mixture.noise.prior_scale * self.pairs.noise)
        return ((x_0 - self.pairs.target) ** 2).mean((1, 2))

    def many(self, z: np.ndarray) -> np.ndarray:
        """For scipy's vectorised population [dim, K]."""
        with torch.no_grad():
            return np.nan_to_num(self.losses(torch.as_tensor(z.T)).numpy(), nan=1e9)

    def refine(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """L-BFGS-B with exact gradients."""

        def value(v: np.ndarray) -> tuple[float, np.ndarray]:
            x = torch.as_tensor(v)[None].requires_grad_()
            loss = self.losses(x)[0]
            (grad,) = torch.autograd.grad(loss, x)
            return 1e3 * loss.item(), 1e3 * grad[0].numpy()

        inside = np.clip(z, 1e-6, 1 - 1e-6)
        found = minimize(
            value, inside, jac=True, method="L-BFGS-B", bounds=self.bounds, options={"maxiter": 500}
        )
        return found.fun / 1e3, found.x

    def run(self, seed: int) -> tuple[float, np.ndarray]:
        """One differential evolution, the best of its population refined."""
        found = differential_evolution(
            self.many,
            self.bounds,
            vectorized=True,
            updating="deferred",
            popsize=8,
            maxiter=120,
            tol=1e-9,
            polish=False,
            rng=seed,
            init="sobol",
        )
        order = np.argsort(found.population_energies)[:4]
        return min((self.refine(found.population[i]) for i in order), key=lambda pair: pair[0])


def ratios(search: Search, model_id: str, optimum: float, settings: dict[str, Any]) -> list[float]:
    """Losses of the default procedure's members on the search's pairs, over the optimum."""
    model, noise = open_model(model_id), search.mixture.noise
    pairs = Pairs(search.pairs.noise.float(), search.pairs.target.float())
    *_, progress = learning(model, search.solver.name, search.nfe, pairs, pairs, **settings)
    with torch.no_grad():
        x_0 = sample(search.mixture, progress.tableau, noise.prior_scale * search.pairs.noise)
    losses = ((x_0 - search.pairs.target) ** 2).mean((1, 2))
    return [float(loss) / optimum for loss in losses]


def defaults(known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every cell with every variant of the default procedure, a row each; `known` has some."""
    there = {(row["model"], row["solver"], row["nfe"]): row for row in known}
    for model_id in MIXTURES:
        for name in SOLVERS:
            for nfe in (3, 4):
                mixture: Any = open_model(model_id).denoiser
                search = Search(make_solver(name), nfe, mixture)
                row = there.get((model_id, name, nfe)) or {
                    "model": model_id,
                    "solver": name,
                    "nfe": nfe,
                    "restarts": [search.run(seed)[0] for seed in range(2)],
                }
                for variant, settings in VARIANTS.items():
                    if variant not in row:
                        row[variant] = ratios(search, model_id, min(row["restarts"]), settings)
                print(row, flush=True)
                yield row


def told(rows: list[dict[str, Any]]) -> None:
    """Print how near each variant comes over all cells."""
    for variant in VARIANTS:
        best = np.array([min(row[variant]) for row in rows])
        print(f"{variant}: within 10 % {(best < 1.1).mean():.0%}, median {np.median(best):.3f}, "
              f"worst {best.max():.2f}")  # fmt: skip


def searched(restarts: int, solvers: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The cells of these solvers, learned with small steps from many starts."""
    for name, nfe in CELLS:
        if name not in solvers:
            continue
        solver, began = make_solver(name), time.perf_counter()
        search = Search(solver, nfe)
        ends = sorted((search.run(seed) for seed in range(restarts)), key=lambda pair: pair[0])
        between = time.perf_counter()
        loss, _ = learned(solver, nfe)
        grid = search.grid(torch.as_tensor(ends[0][1])[None]).member(0)
        row = {
            "solver": name,
            "nfe": nfe,
            "optimum": ends[0][0],
            "restarts": [value for value, _ in ends],
            "learned": float(loss.min()),
            "ratio": float(loss.min()) / ends[0][0],
            "members": len(loss),
            "members_within_1_percent": int((loss < 1.01 * ends[0][0]).sum()),
            "knots": grid.knots.tolist(),
            "evals": grid.evals.tolist(),
            "seconds_search": round(between - began, 1),
            "seconds_learn": round(time.perf_counter() - between, 1),
        }
        print({k: v for k, v in row.items() if k not in ("knots", "evals")}, flush=True)
        yield row


def main(asked: list[str]) -> None:
    torch.set_num_threads(1)  # tensors this small gain nothing from a second one
    file = Path(__file__).parents[2] / "results" / "benchmarks" / "global_optimum.json"
    body = {"window": WINDOW, "pairs": PAIRS, "cells": [], "default": []}
    body |= json.loads(file.read_text()) if file.exists() else {}
    default = asked == ["--default"]
    part = "default" if default else "cells"
    found = defaults(body[part]) if default else searched(3, tuple(asked) or ("dpmpp-2", "ipndm-2"))
    names = ("model", "solver", "nfe")
    for row in found:
        cell = [row.get(name) for name in names]
        others = [old for old in body[part] if [old.get(name) for name in names] != cell]
        body[part] = [*others, row]
        file.write_text(json.dumps(body, indent=1) + "\n")
    if default:
        told(body["default"])


if __name__ == "__main__":
    main(sys.argv[1:])
