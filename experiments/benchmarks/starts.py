"""Which grids to start from: every one alone and in company, over the cells of two analytic mixtures.

    python experiments/benchmarks/starts.py [--out results/benchmarks/starts.json]

Grounds, pairs and seeds of `defaults.py`. All starts of a cell and both seeds are learned in one packed run with the
default preset; a set of starts gives the member of it with the least held-out loss. "previous" is the solution for the
next smaller NFE, resampled. Printed and written: a set's loss on 500 fresh pairs relative to that of SETS' first, as a
geometric mean over cells, and the same before any learning.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from defaults import COUNT, GROUNDS, L2, NFES, SOLVERS, generate, lines, pairs_by_use
from torch import Tensor

from ld3_dist.core.grid import discretize, resample
from ld3_dist.core.learn import LearnConfig, Progress, learn
from ld3_dist.core.solver import Tableau, make_solver
from ld3_dist.models import LoadedModel
from ld3_dist.training_free import TRAINING_FREE, find_knots

MIXTURES = GROUNDS["mixtures"]
SEEDS = MIXTURES.seeds
HAND_MADE = ("log_snr", "karras", "uniform")
SETS = [
    ("log_snr", "karras"), *[(name,) for name in (*HAND_MADE, *TRAINING_FREE, "previous")],
    ("log_snr", "karras", "previous"), ("log_snr", "karras", *TRAINING_FREE, "previous"),
]  # fmt: skip


def cells(model: str) -> list[dict]:
    """Rows: cell, set, loss on fresh pairs."""
    opened, train, valid, fresh = pairs_by_use(model, MIXTURES.teacher_nfe, len(SEEDS))
    noise, scale = opened.denoiser.noise, opened.denoiser.noise.prior_scale
    rows = []
    for name in SOLVERS:
        solver, previous = make_solver(name), None
        for nfe in NFES:
            steps = solver.steps(nfe)
            knots: dict[str, Tensor] = {start: discretize(noise, steps, start) for start in HAND_MADE}
            for start in TRAINING_FREE:
                knots[start] = find_knots(start, opened.denoiser, solver, nfe, x_T=scale * valid.noise)
            if previous is not None:
                knots["previous"] = resample(noise, previous, steps)
            members = [(s, start) for s in SEEDS for start in knots]
            run = learn(
                opened.denoiser, solver, torch.stack([knots[start] for _, start in members]), train, valid, L2,
                LearnConfig(), nfe=nfe, seeds=[s for s, _ in members],
                subsets=torch.stack([torch.arange(COUNT) + COUNT * s for s, _ in members]),
            )  # fmt: skip
            first, *_, end = run
            previous = end.best.knots[int(end.best_valid.argmin())]
            found = {}
            for when, progress in (("start", first), ("learned", end)):
                found[when] = [losses_of(opened, progress, k, fresh) for k in range(len(members))]
            for chosen in SETS:
                if not set(chosen) <= set(knots):
                    continue
                row = {"cell": f"{opened.id}/{name}/{nfe}", "set": " + ".join(chosen)}
                for when, progress in (("start", first), ("learned", end)):
                    best = [min(
                        (k for k, (seed, start) in enumerate(members) if seed == s and start in chosen),
                        key=progress.best_valid.tolist().__getitem__,
                    ) for s in SEEDS]  # fmt: skip
                    row[when] = math.exp(sum(math.log(found[when][k]) for k in best) / len(best))
                rows.append(row)
    return rows


def losses_of(opened: LoadedModel, progress: Progress, k: int, fresh) -> float:
    """A member's loss on fresh pairs."""
    tableau = progress.tableau
    table = Tableau(tableau.evals[k], tableau.state[k], tableau.outputs[k])
    return float(L2(generate(opened, table, fresh), fresh.target).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/starts.json"))
    given = parser.parse_args()
    rows = [row for name in MIXTURES.models for row in cells(name)]
    base = {row["cell"]: row for row in rows if row["set"] == " + ".join(SETS[0])}
    found = {}
    for chosen in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == chosen]
        found[chosen] = {"cells": len(mine)} | {
            when: round(math.exp(sum(math.log(r[when] / base[r["cell"]][when]) for r in mine) / len(mine)), 3)
            for when in ("start", "learned")
        }
    print(json.dumps(found, indent=1))
    given.out.write_text(lines({"relative loss": found, "rows": rows}))


if __name__ == "__main__":
    main()
