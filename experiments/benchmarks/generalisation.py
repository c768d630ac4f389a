"""What makes a schedule good on fresh pairs, at equal total network evaluations.

    python experiments/benchmarks/generalisation.py [--variants …] [--cells unipc-3/4 …]
        [--model digits] [--workers 1] [--out runs/generalisation] [--table FILE]

A variant says how many pairs are taught, how they are used, and how a schedule is chosen. For every
cell, variant and seed there is one file with the members' tables, the per-sample losses of the
chosen one on 2,000 fresh pairs, and the evaluations that teaching and learning took; files that are
there are not made again. The summary gives, relative to the variant `published`, geometric means
over cells and seeds of the fresh loss's mean, median and interquartile mean, the worst cell, and
the evaluations that were spent; `--table` keeps these figures of every run, and for variants with
several seeds the ratio of means with its interval over seeds and samples. Teacher UniPC-3 with 20
evaluations on the Karras grid.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import former
import numpy as np
import torch
from torch import Tensor

from ld3_dist.core.distance import make_distance
from ld3_dist.core.learning.descent import Descent
from ld3_dist.core.learning.learn import Pairs, Problem, Progress, learn, make_config
from ld3_dist.core.learning.objective import Objective
from ld3_dist.core.learning.procedure import procedures
from ld3_dist.core.solver import make_solver
from ld3_dist.metrics.paired import over_seeds
from ld3_dist.models import Model, open_model
from ld3_dist.schedule.sampling import make_samples
from ld3_dist.schedule.starts import begins_later, grid_name, start_knots
from ld3_dist.schedule.teaching import Teacher, teach

SOLVERS, NFES = ("unipc-3", "dpmpp-3", "ipndm-3", "ddim"), (4, 6, 8, 10)
FRESH, TEACHER_NFE, MOST = 2_000, 20, 800
L2 = make_distance("l2")


@dataclass(frozen=True)
class Variant:
    """How pairs are used: `train` and `valid` of them, settings of learning, tricks.

    base: settings that it changes; of the former default, or none for the present one.
    robust: scale of the logarithm that tames a batch's large losses, in units of the batch's
        geometric mean; 0: none.
    average: the parameters that are judged are running means over some 1 / average steps; 0: none.
    every: epochs between two validations.
    race: epochs after which only the best start of a seed goes on; 0: all do.
    """

    train: int = 50
    valid: int = 50
    starts: tuple[str, ...] = former.STARTS
    procedure: str = "tricks"
    settings: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=lambda: former.SETTINGS)
    robust: float = 0.0
    average: float = 0.0
    every: int = 1
    race: int = 0


FOUR = ("log_snr", "optimal-steps", "later:log_snr", "later:optimal-steps")
ONE = ("log_snr", "later:log_snr", "later:optimal-steps")
PAPER = Variant(starts=("log_snr",), procedure="paper", base={})
VARIANTS = {
    "published": PAPER,
    "default": Variant(100, 50, starts=Descent.starts, base={}),
    "default, 50 pairs": Variant(starts=Descent.starts, base={}),
    "default, 340 pairs": Variant(340, 170, starts=Descent.starts, base={}),
    "default, 750 pairs, 8 epochs": Variant(
        750, 170, starts=Descent.starts, settings={"epochs": 8}, base={}
    ),
    **{f"25 pairs, 15 epochs, {start}": Variant(25, 25, starts=(start,), settings={"epochs": 15},
                                                base={}) for start in ONE},
    "four starts": Variant(starts=FOUR, base={}),
    "former default": Variant(),
    "200 pairs, 10 epochs": Variant(200, 50, settings={"epochs": 10}),
    "200 pairs, 10 epochs, 200 held out, every 3": Variant(
        200, 200, settings={"epochs": 10}, every=3
    ),
    "200 pairs, 10 epochs, 200 held out, average": Variant(
        200, 200, settings={"epochs": 10}, every=3, average=0.1
    ),
    "200 pairs, 10 epochs, 200 held out, average, robust": Variant(
        200, 200, settings={"epochs": 10}, every=3, average=0.1, robust=1.0
    ),
    "200 pairs, 10 epochs, 200 held out, average, robust 4": Variant(
        200, 200, settings={"epochs": 10}, every=3, average=0.1, robust=4.0
    ),
    "200 pairs, 20 epochs, 200 held out, average, robust 4": Variant(
        200, 200, settings={"epochs": 20}, every=5, average=0.1, robust=4.0
    ),
    "batches of 5, 20 epochs": Variant(settings={"batch": 5, "epochs": 20}),
    "batches of 5": Variant(settings={"batch": 5}),
    "100 pairs, batches of 5, 20 epochs": Variant(100, 50, settings={"batch": 5, "epochs": 20}),
    "200 pairs, batches of 5, 8 epochs": Variant(200, 50, settings={"batch": 5, "epochs": 8}),
    "start time": Variant(settings={"start_time": True}),
    "200 pairs, 10 epochs, 200 held out, average, start time": Variant(
        200, 200, settings={"epochs": 10, "start_time": True}, every=3, average=0.1
    ),
    "200 pairs, 10 epochs, 200 held out, average, robust 4, start time": Variant(
        200, 200, settings={"epochs": 10, "start_time": True}, every=3, average=0.1, robust=4.0
    ),
    "race": Variant(
        200, 200, settings={"epochs": 10}, every=2, average=0.1, robust=4.0, race=2
    ),
    "coefficients": Variant(settings={"coefficients": True}),
    "default, coefficients": Variant(100, 50, settings={"coefficients": True}, base={}),
    "default, coefficients, a later start": Variant(
        100, 50, starts=Descent.starts, settings={"coefficients": True}, base={}
    ),
    "default, coefficients, 400 pairs, 5 epochs": Variant(
        400, 200, settings={"coefficients": True, "epochs": 5}, base={}
    ),
    "default, coefficients, 400 pairs, 5 epochs, a later start": Variant(
        400, 200, starts=Descent.starts, settings={"coefficients": True, "epochs": 5}, base={}
    ),
    "coefficients, 200 pairs, 40 epochs": Variant(
        200, 200, settings={"coefficients": True, "epochs": 40}, every=5, average=0.1
    ),
    "coefficients, 200 pairs, 40 epochs, robust 4": Variant(
        200, 200, settings={"coefficients": True, "epochs": 40}, every=5, average=0.1, robust=4.0
    ),
    "coefficients, 200 pairs, 10 epochs, robust 4": Variant(
        200, 200, settings={"coefficients": True, "epochs": 10}, every=3, average=0.1, robust=4.0
    ),
}  # fmt: skip


class Tamed(Objective):
    """The loss c log(1 + l / c), with c in units of the geometric mean of a member's batch."""

    scale = 1.0

    def _forward(self, tableau, x, pairs, features, rows, recompute):
        loss = super()._forward(tableau, x, pairs, features, rows, recompute)
        if not torch.is_grad_enabled():
            return loss
        c = self.scale * loss.detach().clamp_min(1e-30).log().mean(1, keepdim=True).exp()
        weight = 1 / (1 + loss.detach() / c)
        weight = weight / weight.mean(1, keepdim=True)
        return weight * loss + ((1 - weight) * loss).detach()


@procedures.register("tricks")
class Tricks(Descent):
    """The default procedure with the tricks of a variant."""

    variant = Variant()

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.mean = {name: p.detach().clone() for name, p in self.grids.named_parameters()}
        self.steps = 0

    def step(self, batch: Tensor, k: Tensor, rate: float) -> Tensor:
        loss = super().step(batch, k, rate)
        self.steps += 1
        weight = max(self.variant.average, 1 / self.steps)
        for name, p in self.grids.named_parameters():
            self.mean[name].lerp_(p.detach(), weight)
        return loss

    @torch.no_grad()
    def validate(self, epoch: int) -> Progress:
        v = self.variant
        last = epoch == self.config.epochs
        if epoch and epoch % v.every and not last and epoch != v.race:
            return self.progress(epoch, self.best["valid"].clone())
        now = {name: p.detach().clone() for name, p in self.grids.named_parameters()}
        if v.average:
            self.grids.load_state_dict(self.mean)
        progress = super().validate(epoch)
        if v.average:
            self.grids.load_state_dict(now)
        if v.race and epoch == v.race:
            best: dict[int, int] = {}
            for k, seed in enumerate(self.problem.seeds):
                if seed not in best or progress.valid[k] < progress.valid[best[seed]]:
                    best[seed] = k
            self.active = [k for k in self.active if k in best.values()]
        return progress

    @classmethod
    def make_objective(cls, problem, config):
        if not cls.variant.robust:
            return super().make_objective(problem, config)
        made = Tamed(problem.denoiser, problem.distance, config.checkpointing)
        made.scale = cls.variant.robust
        return made


@cache
def ground(model: str) -> tuple[Model, Pairs, Pairs, Pairs]:
    """A model, pairs to learn from (MOST a seed), to select by, and fresh ones."""
    torch.set_num_threads(1)
    opened = open_model(model)
    spans = ((MOST, MOST * 4), (0, MOST), (10**9, 10**9 + FRESH))
    train, valid, fresh = (
        teach(opened, teacher=Teacher(nfe=TEACHER_NFE), indices=range(*s)) for s in spans
    )
    return opened, train, valid, fresh


def problem_of(model: str, solver: str, nfe: int, seed: int, v: Variant) -> Problem:
    """What a variant learns in a cell, with the pairs of a seed."""
    opened, train, valid, _ = ground(model)
    student, own = make_solver(solver), train[MOST * seed : MOST * seed + v.train]
    grids = [start_knots(grid_name(s), opened, student, nfe, own) for s in v.starts]
    return Problem(
        opened.denoiser, student, torch.stack(grids), own, valid[: v.valid], L2, nfe,
        [seed] * len(grids), later=[begins_later(s) for s in v.starts],
    )  # fmt: skip


def measure(job: tuple[str, str, int, str, int, Path]) -> str:
    """Learn one cell with one variant and seed, and write what came out."""
    model, solver, nfe, name, seed, out = job
    file = out / f"{model}-{solver}-{nfe}-{seed}-{name.replace(' ', '_')}.json"
    if file.exists():
        return f"{file.name}: there"
    opened, _, valid, fresh = ground(model)
    v = VARIANTS[name]
    Tricks.variant = v
    config = make_config(v.procedure, **(v.base | v.settings))
    problem = problem_of(model, solver, nfe, seed, v)
    began = time.process_time()
    *_, end = learn(problem, config)
    best = int(end.best_valid.argmin())
    spent = time.process_time() - began
    tables = [end.tableau.take(torch.tensor(k)) for k in range(len(v.starts))]
    every = [
        L2(make_samples(opened, table, fresh.noise, fresh.condition), fresh.target)
        for table in tables
    ]
    table = tables[best]
    held = make_samples(opened, table, valid.noise, valid.condition)
    found = {
        "cell": f"{model}/{solver}/{nfe}", "seed": seed, "variant": name, "start": v.starts[best],
        "valid": float(end.best_valid[best]), "members": end.best_valid.tolist(),
        "members_fresh": [(loss.mean().item(), loss.median().item()) for loss in every],
        "seconds": spent,
        "evaluations": end.network_evals + TEACHER_NFE * (v.train + v.valid),
        "fresh": [float(f"{x:.6g}") for x in every[best].tolist()],
        "held": [float(f"{x:.6g}") for x in L2(held, valid.target).tolist()],
    }  # fmt: skip
    file.write_text(json.dumps(found) + "\n")
    return f"{file.name}: {found['valid']:.3g}, fresh {np.mean(found['fresh']):.3g}"


def iqm(values: np.ndarray) -> float:
    """The mean of the middle half."""
    ordered, quarter = np.sort(values), len(values) // 4
    return float(ordered[quarter : len(values) - quarter].mean())


def summary(out: Path, base: str = "published") -> str:
    """A line per variant, relative to `base`."""
    rows = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
    lines = [f"relative to {base}: mean, worst | median, worst | iqm | fresh/held | evaluations"]
    stats = {"mean": np.mean, "median": np.median, "iqm": iqm}
    at = {(r["variant"], r["cell"], r["seed"]): r for r in rows}
    for variant in VARIANTS:
        both = [(r, at[base, c, s]) for (v, c, s), r in at.items()
                if v == variant and (base, c, s) in at]  # fmt: skip
        if not both:
            continue
        geo = lambda values: math.exp(sum(map(math.log, values)) / len(values))
        ratios = {
            n: [f(np.array(r["fresh"])) / f(np.array(b["fresh"])) for r, b in both]
            for n, f in stats.items()
        }
        cost = geo([r["evaluations"] / b["evaluations"] for r, b in both])
        over = geo([np.mean(r["fresh"]) / r["valid"] for r, _ in both])
        lines.append(
            f"{variant:55s} {geo(ratios['mean']):.3f} {max(ratios['mean']):.2f} | "
            f"{geo(ratios['median']):.3f} {max(ratios['median']):.2f} | {geo(ratios['iqm']):.3f} "
            f"| {over:.2f} | {cost:.2f}  ({len(both)})"
        )
    return "\n".join(lines)


def table(out: Path) -> list[dict[str, Any]]:
    """Every run without its samples."""
    rows = []
    for file in sorted(out.glob("*.json")):
        row = json.loads(file.read_text())
        fresh = np.array(row.pop("fresh"))
        for name in ("held", "members", "members_fresh"):
            row.pop(name, None)
        rows.append(
            row | {"mean": fresh.mean(), "median": float(np.median(fresh)), "iqm": iqm(fresh)}
        )
    return rows


def comparisons(out: Path, model: str = "digits") -> list[dict[str, Any]]:
    """Ratios of mean fresh losses of two variants, over the cells that both have for most seeds."""
    seeds: dict[str, dict[str, dict[int, list[float]]]] = {}
    for file in sorted(out.glob(f"{model}-*.json")):
        run = json.loads(file.read_text())
        runs = seeds.setdefault(run["variant"], {}).setdefault(run["cell"], {})
        runs[run["seed"]] = run["fresh"]
    found = []
    for own, base in itertools.permutations(seeds, 2):
        both = {c: sorted(seeds[own][c].keys() & seeds[base][c].keys())
                for c in (f"{model}/{s}/{n}" for s in SOLVERS for n in NFES)
                if c in seeds[own] and c in seeds[base]}  # fmt: skip
        common = max(both.values(), key=len, default=[])
        cells = [c for c, has in both.items() if has == common]
        if len(common) < 2 or own == "published" or base not in ("published", "default"):
            continue
        mine, theirs = ([[seeds[of][c][k] for k in common] for c in cells] for of in (own, base))
        ratio, _ = over_seeds(mine, theirs)
        found.append({"variant": own, "over": base, "cells": len(cells), "seeds": common}
                     | ratio._asdict())  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cells = [f"{s}/{n}" for s in SOLVERS for n in NFES]
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cells", nargs="+", default=cells)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/generalisation"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--base", default="published", choices=VARIANTS)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (asked.model, cell.rpartition("/")[0], int(cell.rpartition("/")[2]), name, seed, asked.out)
        for name in asked.variants
        for cell in asked.cells
        for seed in asked.seeds
    ]
    with multiprocessing.get_context("spawn").Pool(asked.workers) as pool:
        for line in pool.imap(measure, jobs):
            print(line, flush=True)
    print(summary(asked.out, asked.base))
    if asked.table:
        lines = [",\n".join(map(json.dumps, rows)) for rows in
                 (comparisons(asked.out), table(asked.out))]  # fmt: skip
        asked.table.write_text(
            f'{{"fresh": {FRESH}, "comparisons": [\n{lines[0]}\n],\n"runs": [\n{lines[1]}\n]}}\n'
        )


if __name__ == "__main__":
    main()
