"""Which grids to start from: every one alone and in company, over the cells of `defaults.py`.

    python experiments/benchmarks/starts.py mixtures | digits [--starts …] [--workers 2]
        [--out results/benchmarks/starts.json]

Grounds, pairs and seeds of `defaults.py`; three minutes on the mixtures, half an hour on digits.
All starts of a cell and its seeds are learned in one packed run of the default; a set of
starts gives the member of it with the least held-out loss. "previous" is the solution for the next
smaller NFE, resampled. Printed and written: a set's loss on 500 fresh pairs relative to that of
SETS' first, as a geometric mean over cells, the share of cells where it is lower, and the loss
before any learning; what the default was stands beside it. Every worker is a process with one
thread."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from dataclasses import asdict
from pathlib import Path

import former
import torch
from defaults import COUNT, GROUNDS, L2, NFES, SOLVERS, Ground, lines, pairs_by_use
from torch import Tensor

from ld3_dist.core.grid import discretize, resample
from ld3_dist.core.learning.learn import Pairs, Problem, Progress, learn, make_config
from ld3_dist.core.solver import Tableau, make_solver
from ld3_dist.models import Model
from ld3_dist.schedule.sampling import make_samples
from ld3_dist.training_free import TRAINING_FREE, find_knots

STARTS = ("log_snr", "karras", "uniform", *TRAINING_FREE, "previous")
SETS = [
    ("log_snr", "karras"),
    *[(name,) for name in STARTS],
    ("log_snr", "optimal-steps"),
    ("log_snr", "previous"),
    ("log_snr", "karras", "optimal-steps"),
    ("log_snr", "karras", "previous"),
    ("log_snr", "karras", *TRAINING_FREE, "previous"),
]
WHEN = ("start", "learned")


def cells(job: tuple[Ground, str, str, tuple[str, ...]]) -> list[dict]:
    """Of a ground, a model, a solver and starts, rows: cell, set, loss on fresh pairs."""
    ground, model, name, starts = job
    opened, train, valid, fresh = pairs_by_use(model, ground.teacher_nfe, len(ground.seeds))
    solver, previous = make_solver(name), None
    rows = []
    for nfe in NFES:
        knots = {start: knots_of(start, opened, valid, name, nfe, previous) for start in starts}
        knots = {start: k for start, k in knots.items() if k is not None}
        members = [(s, start) for s in ground.seeds for start in knots]
        run = learn(
            Problem(
                opened.denoiser,
                solver,
                torch.stack([knots[start] for _, start in members]),
                train,
                valid,
                L2,
                nfe=nfe,
                seeds=[s for s, _ in members],
                subsets=torch.stack([torch.arange(COUNT) + COUNT * s for s, _ in members]),
            ),
            make_config(**former.SETTINGS),
        )
        first, *_, end = run
        previous = end.best.knots[int(end.best_valid.argmin())]
        ends = dict(zip(WHEN, (first, end), strict=True))
        found = {
            when: [loss_of(opened, p, k, fresh) for k in range(len(members))]
            for when, p in ends.items()
        }
        for chosen in SETS:
            if not set(chosen) <= set(knots):
                continue
            row: dict[str, str | float] = {
                "cell": f"{opened.id}/{name}/{nfe}",
                "set": " + ".join(chosen),
            }
            for when, progress in ends.items():
                best = [min(
                    (k for k, (seed, start) in enumerate(members) if seed == s and start in chosen),
                    key=progress.best_valid.tolist().__getitem__,
                ) for s in ground.seeds]  # fmt: skip
                row[when] = float(
                    f"{math.exp(sum(math.log(found[when][k]) for k in best) / len(best)):.6g}"
                )
            rows.append(row)
    return rows


def knots_of(
    start: str, opened: Model, valid: Pairs, name: str, nfe: int, previous: Tensor | None
) -> Tensor | None:
    """Knots of a start by name; None for a neighbour that is not there."""
    solver, noise = make_solver(name), opened.denoiser.noise
    if start == "previous":
        return None if previous is None else resample(noise, previous, solver.steps(nfe))
    if start in TRAINING_FREE:
        x_T = noise.prior_scale * valid.noise
        return find_knots(start, opened.denoiser, solver, nfe, x_T=x_T, condition=valid.condition)
    return discretize(noise, solver.steps(nfe), start)


def loss_of(opened: Model, progress: Progress, k: int, fresh: Pairs) -> float:
    """A member's loss on fresh pairs."""
    tableau = progress.tableau
    table = Tableau(tableau.evals[k], tableau.state[k], tableau.outputs[k])
    return float(
        L2(make_samples(opened, table, fresh.noise, fresh.condition), fresh.target).double().mean()
    )


def summary(rows: list[dict]) -> dict[str, dict[str, float]]:
    """A set's losses relative to those of SETS' first."""
    base = {row["cell"]: row for row in rows if row["set"] == " + ".join(SETS[0])}
    found = {}
    for chosen in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == chosen]
        ratios = {when: [row[when] / base[row["cell"]][when] for row in mine] for when in WHEN}
        found[chosen] = {
            "cells": len(mine),
            "better in": round(sum(r < 1 for r in ratios["learned"]) / len(mine), 2),
        } | {when: round(math.exp(sum(map(math.log, r)) / len(r)), 3) for when, r in ratios.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ground", choices=GROUNDS)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/starts.json"))
    given = parser.parse_args()
    if missing := set(SETS[0]) - set(given.starts):
        parser.error(
            f"--starts: everything is relative to {' + '.join(SETS[0])}: add "
            f"{' '.join(sorted(missing))}"
        )
    ground = GROUNDS[given.ground]
    jobs = [
        (ground, model, name, tuple(given.starts)) for model in ground.models for name in SOLVERS
    ]
    rows = []
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        for made in pool.imap(cells, jobs):
            rows += made
            print(made[0]["cell"].rpartition("/")[0], flush=True)
    found = summary(rows)
    print(json.dumps(found, indent=1))
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.write_text(
        lines(
            kept
            | {
                given.ground: {
                    "default is": asdict(make_config(**former.SETTINGS)),
                    "relative loss": found,
                    "rows": rows,
                }
            }
        )
    )


if __name__ == "__main__":
    main()
