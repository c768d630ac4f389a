"""The Generalized Solver (GS, arXiv 2510.17699) against `coefficients: true`, on the same model.

    python experiments/benchmarks/generalized_solver.py [--nfe 4 6 8 10] [--gs gs …] [--ours …]
        [--out results/benchmarks/generalized_solver.json]

GS written anew after its paper and code: a DPM-Solver++(3M) on the variance-preserving schedule
with betas from 0.1 to 20, with corrections a and c added to the weight of every earlier state and
output, knots by stick-breaking in time, and a shift of every network time. With s = sigma_{i+1} /
sigma_i, h = lambda_{i+1} - lambda_i, and D1, D2 the divided differences of the outputs m,

    x_{i+1} = (s + a_0) x_i - (alpha (e^-h - 1) + c_0) m_i + (… + c_1) D1 - (… + c_2) D2
              + sum_{k>=1} a_k x_{i-k} + sum_{k>=3} c_k m_{i-k}

Everything is linear in x_T and in the outputs, so it runs as a table. It learns as published: hard
loss, Adam with a constant rate, batches of 24, parameters averaged with weight 0.999. `GS` has its
variants: numbers of pairs, rates and starts (knots even in time, which are its own, and `log_snr`,
which was the better one in all first runs), and the CPU seconds on one thread after which it is
stopped. Of starts, rates, raw and averaged parameters, and iterations, the best one on 1,000 of the
fresh pairs is taken, and then the best variant: that is in its favour. Its time is the run's over
the number of members, which share network calls.

Ours: the default procedure with coefficients, also from starts at t_max alone, and so on 50 pairs
(50 held out), and on 800 pairs (200 held out) with fewer epochs; the former default on 50 pairs,
with a learned start, and on 200 and 800 pairs. Digits, teacher UniPC-3 with 20 evaluations on the
Karras grid, squared distance; all are judged on the same 2,000 fresh pairs by mean and median. What
the file has is not measured again."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import former
import torch
from curve import fresh_loss
from torch import Tensor, nn

from ld3_dist.core.distance import make_distance
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.objective import Objective
from ld3_dist.core.learning.pairs import Pairs
from ld3_dist.core.noise import VPLinear
from ld3_dist.core.sample import sample_generator
from ld3_dist.core.solver import Tableau
from ld3_dist.models import Model, open_model
from ld3_dist.schedule.learning import learning
from ld3_dist.schedule.teaching import teach

NFES, FRESH, FIRST_FRESH = (4, 6, 8, 10), 2000, 100_000
VP = VPLinear(beta_0=0.1, beta_1=20.0)
BATCH, AVERAGE, LOOK, LOOKED_AT = 24, 0.999, 100, 1000
L2 = make_distance("l2")

STARTS = {"starts": list(former.STARTS)}
FORMER = former.SETTINGS | STARTS
OURS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "ours": (100, 50, {}),
    "ours, from t_max": (100, 50, STARTS),
    "ours, 50 pairs": (50, 50, FORMER),
    "ours, 50 pairs, batches of 5": (50, 50, STARTS),
    "ours, 50 pairs, learned start": (50, 50, FORMER | {"start_time": True}),
    "ours, 200 pairs": (200, 200, FORMER | {"epochs": 20}),
    "ours, 800 pairs": (800, 200, FORMER | {"epochs": 10}),
    "ours, 800 pairs, batches of 5": (800, 200, STARTS | {"epochs": 10}),
}
"""Pairs to train, pairs held out, settings beside `coefficients: true`."""


BOTH = ("even in time", "log_snr")
GS: dict[str, tuple[int, tuple[float, ...], tuple[str, ...], float]] = {
    "gs": (1400, (1e-2,), BOTH, 500.0),
    "gs, longer": (1400, (1e-2,), BOTH[1:], 900.0),
    "gs, slower": (1400, (1e-3, 3e-3), BOTH[1:], 800.0),
    "gs, 50 pairs": (50, (1e-3, 3e-3, 1e-2), BOTH[1:], 400.0),
}
"""Pairs, rates, starts, CPU seconds."""


class GeneralizedSolver(nn.Module):
    """K members for an EDM model, from knots [K, N+1] in its sigma."""

    def __init__(self, knots: Tensor) -> None:
        super().__init__()
        K, N = len(knots), knots.shape[1] - 1
        t = VP.inverse(-knots.log()).flip(1)
        self.low, self.high = t[:, :1], t[:, -1:]
        left = 1 - (t[:, 1:-1] - self.low) / (self.high - self.low)
        mu = left / torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], 1)
        self.mu = nn.Parameter(mu.logit())
        self.shift = nn.Parameter(torch.zeros(K, N, dtype=torch.float64))
        self.a = nn.Parameter(torch.zeros(K, N, N, dtype=torch.float64))
        self.c = nn.Parameter(torch.zeros(K, N, N, dtype=torch.float64))

    def times(self) -> Tensor:
        """The knots [K, N+1], decreasing, in variance-preserving time."""
        rest = self.mu.sigmoid().cumprod(1)
        share = torch.cat([torch.zeros_like(self.low), 1 - rest, torch.ones_like(self.low)], 1)
        return (self.low + (self.high - self.low) * share).flip(1)

    def tableau(self) -> Tableau:
        """Every state and output as weights of x_T, D_0 … D_{N-1}: one column of the table each."""
        t = self.times()
        N = t.shape[1] - 1
        at = torch.maximum(t[:, :-1] + self.shift, self.low).clamp_max(1.0)
        lam, alpha, sigma, alpha_at = VP.lam(t), VP.alpha(t), VP.sigma(t), VP.alpha(at)
        ratio, near = (-lam).exp(), (-VP.lam(at)).exp()
        one = torch.eye(N + 1, dtype=t.dtype)
        states = [alpha[:, :1] * one[0]]  # [K, 1 + N] each
        made: list[Tensor] = []
        seen = []
        for i in range(N):
            column = lambda v, i=i: v[:, i, None]
            seen.append(states[i] / column(alpha_at))
            # the network predicts noise at the shifted time; the data follow at the knot's own
            part = column(ratio) / column(near)
            noise = states[i] / column(alpha) - part / column(alpha_at) * states[i]
            made.append(noise + part * one[i + 1])
            states.append(self.step(i, states, made, lam, sigma, alpha))
        rows = torch.stack([*seen, states[-1] / alpha[:, -1:]], 1)
        return Tableau(near, rows[..., 0], rows[..., 1:])

    def step(
        self, i: int, x: list[Tensor], m: list[Tensor], lam: Tensor, sigma: Tensor, alpha: Tensor
    ) -> Tensor:
        """x_{i+1} by the formula at the top of this file."""
        h = (lam[:, i + 1] - lam[:, i])[:, None]
        phi, scale = torch.expm1(-h), alpha[:, i + 1, None]
        a = lambda k: self.a[:, i, k, None]
        c = lambda k: self.c[:, i, k, None]
        y = (sigma[:, i + 1] / sigma[:, i])[:, None] * x[i] - (scale * phi + c(0)) * m[i]
        if i == 0:
            return y + a(0) * x[0]
        ratio = lambda k: (lam[:, i - k] - lam[:, i - k - 1])[:, None] / h
        r0, first = ratio(0), (m[i] - m[i - 1]) / ratio(0)
        if i == 1:
            y = y - (0.5 * scale * phi + c(1)) * first
        else:
            before = (m[i - 1] - m[i - 2]) / ratio(1)
            wide = r0 + ratio(1)
            d1, d2 = first + r0 / wide * (first - before), (first - before) / wide
            phi_2 = phi / h + 1
            y = y + (scale * phi_2 + c(1)) * d1 - (scale * (phi_2 / h - 0.5) + c(2)) * d2
        for k in range(3, i + 1):
            y = y + c(k) * m[i - k]
        for k in range(i + 1):
            y = y + a(k) * x[i - k]
        return y


def generalized(
    model: Model, nfe: int, taught: Pairs, fresh: Pairs, variant: str
) -> dict[str, Any]:
    """A variant of GS on one NFE, packed over its starts and rates."""
    count, rates, begin, seconds = GS[variant]
    pairs = taught[:count]
    noise = model.denoiser.noise
    ends = torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64)
    first, last = VP.inverse(-ends.log()).tolist()
    even = torch.linspace(first, last, nfe + 1, dtype=torch.float64)
    starts = {
        "even in time": (-VP.lam(even)).exp(),
        "log_snr": discretize(noise, nfe, "log_snr").double(),
    }
    members = [(name, rate) for name in begin for rate in rates]
    student = GeneralizedSolver(torch.stack([starts[name] for name, _ in members]))
    objective = Objective(model.denoiser, L2, "never")
    features = L2.features(pairs.target)
    mean = {n: p.detach().clone() for n, p in student.named_parameters()}
    square, momentum = ({n: torch.zeros_like(p) for n, p in mean.items()} for _ in range(2))
    generator = sample_generator(0, 0, "batches")
    curve: list[dict[str, Any]] = []
    spent, iteration, began = 0.0, 0, time.process_time()
    while spent < seconds:
        for batch in torch.randperm(len(pairs), generator=generator).split(BATCH):
            rows = batch.expand(len(members), -1)
            built = student.tableau()
            leaf = built.leaf(pairs.noise)
            objective.gradients(leaf, pairs.noise[rows], pairs, features, rows)
            student.zero_grad()
            built.backward(leaf, torch.arange(len(members)))
            iteration += 1
            adam(student, iteration, members, momentum, square, mean)
            if iteration % LOOK:
                continue
            spent += time.process_time() - began
            point = look(model, student, mean, members, fresh[:LOOKED_AT])
            curve.append({"iteration": iteration, "seconds": spent / len(members)} | point)
            print(nfe, {k: v for k, v in curve[-1].items() if k != "table"}, flush=True)
            began = time.process_time()
            if spent >= seconds:
                break
    best = min(curve, key=lambda point: point["mean"])
    found = {k: v for k, v in best.items() if k != "table"}
    for point in curve:
        if point is not best:
            del point["table"]
    return found | {
        "fresh": fresh_loss(model, fresh, best["table"]),
        "iterations": iteration,
        "still falling": best is curve[-1],
        "curve": [[p["iteration"], round(p["seconds"], 1), p["mean"]] for p in curve],
    }


@torch.no_grad()
def adam(
    student: nn.Module,
    iteration: int,
    members: list[tuple[str, float]],
    first: dict[str, Tensor],
    square: dict[str, Tensor],
    mean: dict[str, Tensor],
) -> None:
    """One step of Adam, with a rate per member, and of the running means of the parameters."""
    rates = torch.tensor([rate for _, rate in members], dtype=torch.float64)
    keep = min(AVERAGE, (1 + iteration) / (10 + iteration))
    for name, p in student.named_parameters():
        g = torch.zeros_like(p) if p.grad is None else torch.nan_to_num(p.grad)
        first[name].lerp_(g, 1 - 0.9)
        square[name].lerp_(g.square(), 1 - 0.999)
        step = first[name] / (1 - 0.9**iteration)
        step = step / ((square[name] / (1 - 0.999**iteration)).sqrt() + 1e-8)
        p.sub_(rates.view(-1, *[1] * (p.ndim - 1)) * step)
        mean[name].lerp_(p, 1 - keep)


@torch.no_grad()
def look(
    model: Model,
    student: GeneralizedSolver,
    mean: dict[str, Tensor],
    members: list[tuple[str, float]],
    fresh: Pairs,
) -> dict[str, Any]:
    """The best member now, with its raw or its averaged parameters."""
    raw = {n: p.detach().clone() for n, p in student.named_parameters()}
    found: list[dict[str, Any]] = []
    for kind, values in (("raw", raw), ("averaged", mean)):
        student.load_state_dict(values)
        table = student.tableau()
        for k, (start, rate) in enumerate(members):
            own = table.take(torch.tensor(k))
            found.append(
                {"start": start, "rate": rate, "parameters": kind, "table": own}
                | fresh_loss(model, fresh, own)
            )
    student.load_state_dict(raw)
    finite = [one for one in found if math.isfinite(one["mean"])]
    return min(finite or found, key=lambda one: one["mean"])


def ours(
    model: Model, nfe: int, pairs: Pairs, valid: Pairs, fresh: Pairs, settings: dict[str, Any]
) -> dict[str, Any]:
    """The default procedure with coefficients, DPM-Solver++(3M), its own starts."""
    began = time.process_time()
    *_, progress = learning(model, "dpmpp-3", nfe, pairs, valid, coefficients=True, **settings)
    seconds, k = time.process_time() - began, int(progress.best_valid.argmin())
    table = progress.tableau.take(torch.tensor(k))
    return {
        "fresh": fresh_loss(model, fresh, table),
        "valid": progress.best_valid[k].item(),
        "evaluations": progress.network_evals,
        "seconds": seconds,
    }


def summary(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ours over the best variant of GS on fresh pairs, and the times."""
    cells = {nfe: cell for nfe, cell in cells.items() if {"gs", *OURS} <= set(cell)}
    best = {
        nfe: min((v for v in GS if v in cell), key=lambda v, cell=cell: cell[v]["fresh"]["mean"])
        for nfe, cell in cells.items()
    }
    body: dict[str, Any] = {"best variant": best}
    cells = {nfe: cell | {"gs": cell[best[nfe]]} for nfe, cell in cells.items()}
    for name in OURS if cells else ():
        for kind in ("mean", "median"):
            ratios = {
                nfe: cell[name]["fresh"][kind] / cell["gs"]["fresh"][kind]
                for nfe, cell in cells.items()
            }
            body[f"{name} / gs, {kind}"] = {nfe: round(r, 3) for nfe, r in ratios.items()} | {
                "geometric mean": round(statistics.geometric_mean(ratios.values()), 3)
            }
        body[f"{name}, share of the time of gs"] = {
            nfe: round(cell[name]["seconds"] / cell["gs"]["seconds"], 3)
            for nfe, cell in cells.items()
        }
    return body


def main() -> None:
    """Measure the NFEs that the file lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nfe", nargs="+", type=int, default=NFES)
    parser.add_argument("--ours", nargs="*", choices=OURS, default=tuple(OURS), metavar="VARIANT")
    parser.add_argument("--gs", nargs="*", choices=GS, default=tuple(GS), metavar="VARIANT")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks/generalized_solver.json")
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model("digits")
    most = max(count for count, *_ in (*OURS.values(), *GS.values()))
    train, valid = teach(model, indices=range(1000, 1000 + most)), teach(model, 200)
    fresh = teach(model, indices=range(FIRST_FRESH, FIRST_FRESH + FRESH))
    for nfe in asked.nfe:
        for name in (*asked.ours, *asked.gs):
            if name in known(asked.out).get(str(nfe), {}):
                continue
            if name in GS:
                found = generalized(model, nfe, train, fresh, name)
            else:
                count, held, settings = OURS[name]
                found = ours(model, nfe, train[:count], valid[:held], fresh, settings)
            print(nfe, name, found["fresh"], flush=True)
            cells = known(asked.out)  # anew: another run may have added to it
            cells.setdefault(str(nfe), {})[name] = found
            body = {"summary": summary(cells), "cells": cells}
            asked.out.write_text(json.dumps(body, indent=1) + "\n")
    print(json.dumps(summary(known(asked.out)), indent=1))


def known(out: Path) -> dict[str, dict[str, Any]]:
    """What a file has, by NFE and name."""
    return json.loads(out.read_text())["cells"] if out.exists() else {}


if __name__ == "__main__":
    main()
