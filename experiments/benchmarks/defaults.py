"""Which settings make a good default: one changed at a time, over solvers, NFE and models.

    python experiments/benchmarks/defaults.py mixtures | digits [--variants …] [--workers 2]
        [--out results/benchmarks/defaults.json]

7 solvers x NFE 3, 4, 5, 6, 8, 10 on

mixtures   the analytic 1-D and 2-D mixtures, 2 seeds x 2 starts; teacher UniPC-3 with 30
           evaluations; one minute each
digits     the embedded network, 1 seed from the log-SNR grid; teacher UniPC-3 with 20; ten minutes
           each

50 + 50 pairs, the members of a cell packed, squared distance; a cell's loss is the geometric mean
over seeds of the best start's loss on 500 fresh pairs, so that neither the training nor the
selecting pairs decide. Printed and written: every variant's geometric mean over cells of its loss
relative to that of "default", which is BASE, and the share of cells where it is lower; BASE in full
is written beside it. Variants that were measured before with the same are kept. Every worker is a
process with one thread."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import former
import torch
from torch import Tensor

from ld3_dist.core.distance import make_distance
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.descent import Descent
from ld3_dist.core.learning.learn import Pairs, Problem, Progress, learn, make_config
from ld3_dist.core.learning.procedure import procedures
from ld3_dist.core.solver import Tableau, make_solver
from ld3_dist.models import Model, open_model
from ld3_dist.schedule.sampling import make_samples
from ld3_dist.schedule.teaching import Teacher, teach

COUNT, FRESH = 50, 500
SOLVERS = ("ddim", "dpmpp-2", "dpmpp-3", "unipc-2", "unipc-3", "ipndm-2", "ipndm-3")
NFES = (3, 4, 5, 6, 8, 10)


@dataclass(frozen=True)
class Ground:
    """Models, evaluations of their teacher, and the members of a cell."""

    models: tuple[str, ...]
    teacher_nfe: int
    seeds: tuple[int, ...]
    starts: tuple[str, ...]


GROUNDS = {
    "mixtures": Ground(
        ("analytic:mixture-1d", "analytic:mixture-2d"), 30, (0, 1), ("log_snr", "karras")
    ),
    "digits": Ground(("digits",), 20, (0,), ("log_snr",)),
}
BASE: dict[str, Any] = former.SETTINGS | {"lr": 0.1, "final_lr": 0.02}
"""What a variant changes: the default as it was; "lr 0.2, final_lr 0.1" is what it became by this.
"""
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "lr 0.05": {"lr": 0.05},
    "lr 0.2": {"lr": 0.2},
    "lr 0.3": {"lr": 0.3},
    "lr 0.2, lr_times 0.1": {"lr": 0.2, "lr_times": 0.1},
    "lr 0.2, batch 5, epochs 20": {"lr": 0.2, "batch": 5, "epochs": 20},
    "lr 0.2, final_lr 0.05": {"lr": 0.2, "final_lr": 0.05},
    "lr 0.2, lr_times 0.1, final_lr 0.1": {"lr": 0.2, "lr_times": 0.1, "final_lr": 0.1},
    "lr 0.2, final_lr 0.1": {"lr": 0.2, "final_lr": 0.1},
    "lr 0.2, offset_window 0.9": {"lr": 0.2, "offset_window": 0.9},
    "lr 0.2, offset_window 0.9, final_lr 0.1": {"lr": 0.2, "offset_window": 0.9, "final_lr": 0.1},
    "lr_times 0.1": {"lr_times": 0.1},
    "lr_times 0.2": {"lr_times": 0.2},
    "batch 5": {"batch": 5},
    "batch 5, epochs 20": {"batch": 5, "epochs": 20},
    "batch 25": {"batch": 25},
    "gamma 0": {"gamma": 0.0},
    "gamma 0.01": {"gamma": 0.01},
    "final_lr 0.1": {"final_lr": 0.1},
    "epochs 80": {"epochs": 80},
    "coupled network times": {"offset_window": 0.0},
    "offset_window 0.9": {"offset_window": 0.9},
    "coordinate time": {"coordinate": "time"},
    "averaged parameters": {},
    "coefficients": {"coefficients": True},
    "coefficients, rate 0.02": {"coefficients": True, "lr_coefficients": 0.02},
    "coefficients, rate 0.05": {"coefficients": True, "lr_coefficients": 0.05},
}
L2 = make_distance("l2")


PROCEDURE = {"averaged parameters": "averaged"}
"""Procedures of the variants that need another than the default."""


@procedures.register("averaged")
class Averaged(Descent):
    """Selects among exponential averages of the parameters over some ten iterations instead of the
    parameters.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.mean = {name: p.detach().clone() for name, p in self.grids.named_parameters()}

    def step(self, batch: Tensor, k: Tensor, rate: float) -> Tensor:
        loss = super().step(batch, k, rate)
        for name, p in self.grids.named_parameters():
            self.mean[name].lerp_(p.detach(), 0.1)
        return loss

    @torch.no_grad()
    def validate(self, epoch: int) -> Progress:
        now = {name: p.detach().clone() for name, p in self.grids.named_parameters()}
        self.grids.load_state_dict(self.mean)
        progress = super().validate(epoch)
        self.grids.load_state_dict(now)
        return progress


@cache
def pairs_by_use(model: str, teacher_nfe: int, seeds: int) -> tuple[Model, Pairs, Pairs, Pairs]:
    """A model with its pairs to learn from, to select by and to measure on; made once a process."""
    torch.set_num_threads(1)
    opened = open_model(model)
    spans = ((COUNT, COUNT * (1 + seeds)), (0, COUNT), (100_000, 100_000 + FRESH))
    train, valid, fresh = (
        teach(opened, teacher=Teacher(nfe=teacher_nfe), indices=range(*span)) for span in spans
    )
    return opened, train, valid, fresh


def losses(job: tuple[Ground, str, str, str]) -> list[dict]:
    """Of a ground, a model, a variant and a solver, rows: variant, cell, loss on fresh pairs."""
    ground, model, variant, name = job
    opened, train, valid, fresh = pairs_by_use(model, ground.teacher_nfe, len(ground.seeds))
    noise, solver, config = (
        opened.denoiser.noise,
        make_solver(name),
        make_config(PROCEDURE.get(variant, "default"), **(BASE | VARIANTS[variant])),
    )
    members = [(s, start) for s in ground.seeds for start in ground.starts]
    subsets = torch.stack([torch.arange(COUNT) + COUNT * s for s, _ in members])
    rows = []
    for nfe in NFES:
        began = time.perf_counter()
        *_, end = learn(
            Problem(
                opened.denoiser,
                solver,
                torch.stack([discretize(noise, solver.steps(nfe), start) for _, start in members]),
                train,
                valid,
                L2,
                nfe=nfe,
                seeds=[s for s, _ in members],
                subsets=subsets,
            ),
            config,
        )
        found = []
        for s in ground.seeds:
            best = min(
                (k for k, m in enumerate(members) if m[0] == s),
                key=end.best_valid.tolist().__getitem__,
            )
            table = Tableau(
                end.tableau.evals[best], end.tableau.state[best], end.tableau.outputs[best]
            )
            found.append(
                float(
                    L2(make_samples(opened, table, fresh.noise, fresh.condition), fresh.target)
                    .double()
                    .mean()
                )
            )
        loss = float(f"{math.exp(sum(map(math.log, found)) / len(found)):.6g}")
        seconds = round(time.perf_counter() - began, 2)
        rows.append(
            {
                "variant": variant,
                "cell": f"{opened.id}/{name}/{nfe}",
                "loss": loss,
                "seconds": seconds,
            }
        )
    return rows


def summary(rows: list[dict]) -> dict[str, dict[str, float]]:
    """A variant's losses relative to the default's."""
    base = {row["cell"]: row["loss"] for row in rows if row["variant"] == "default"}
    found = {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        ratios = [row["loss"] / base[row["cell"]] for row in rows if row["variant"] == variant]
        found[variant] = {
            "relative loss": round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 3),
            "better in": round(sum(r < 1 for r in ratios) / len(ratios), 2), "cells": len(ratios),
        }  # fmt: skip
    return found


def lines(found: dict) -> str:
    """As JSON with every innermost object on a line of its own."""
    text = json.dumps(found, indent=1)
    return re.sub(r"\{[^{}]*\}", lambda inner: " ".join(inner[0].split()), text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ground", choices=GROUNDS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/defaults.json"))
    given = parser.parse_args()
    ground, now = GROUNDS[given.ground], asdict(make_config(**BASE))
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    before = kept.get(given.ground, {})
    rows = [
        r
        for r in before.get("rows", [])
        if before["default is"] == now and r["variant"] not in given.variants
    ]
    if "default" not in given.variants and not any(r["variant"] == "default" for r in rows):
        parser.error(
            f"--variants: everything is relative to the default, which {given.out} lacks: add "
            f"default"
        )
    jobs = [
        (ground, model, variant, name)
        for variant in given.variants
        for model in ground.models
        for name in SOLVERS
    ]
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        for done, made in enumerate(pool.imap(losses, jobs), 1):
            rows += made
            print(made[0]["variant"], made[0]["cell"].rpartition("/")[0], flush=True)
            if (
                done % (len(jobs) // len(given.variants)) == 0
            ):  # a variant is complete: kept whatever comes
                found = {"default is": now, "summary": summary(rows), "rows": rows}
                given.out.write_text(lines(kept | {given.ground: found}))
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
