"""Which settings make a good default: one changed at a time, over solvers, NFE and models.

    python experiments/benchmarks/defaults.py mixtures | digits [--variants …] [--out results/benchmarks/defaults.json]

mixtures   the analytic 1-D and 2-D mixtures, 7 solvers x NFE 3, 4, 5, 6, 8, 10; teacher UniPC-3 with 30 evaluations
digits     the embedded network, 2 solvers x NFE 4, 8; teacher UniPC-3 with 20

50 + 50 pairs, 2 seeds x 2 starts packed, squared distance; a cell's loss is the geometric mean over seeds of the best
start's loss on 500 fresh pairs, so that neither the training nor the selecting pairs decide. Printed and written: every
variant's geometric mean over cells of its loss relative to the default's, and the share of cells where it is lower;
what the default was is written beside it, for it may have changed on these grounds since.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3_dist.core import learn as procedures
from ld3_dist.core.descent import Descent
from ld3_dist.core.distance import make_distance
from ld3_dist.core.grid import discretize
from ld3_dist.core.learn import LearnConfig, Pairs, Progress, learn
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import Tableau, make_solver
from ld3_dist.models import LoadedModel, open_model

SEEDS, STARTS, COUNT, FRESH = (0, 1), ("log_snr", "karras"), 50, 500
GROUNDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], int]] = {
    "mixtures": (
        ("analytic:mixture-1d", "analytic:mixture-2d"),
        ("ddim", "dpmpp-2", "dpmpp-3", "unipc-2", "unipc-3", "ipndm-2", "ipndm-3"), (3, 4, 5, 6, 8, 10), 30,
    ),
    "digits": (("digits",), ("unipc-3", "ipndm-3"), (4, 8), 20),
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "lr 0.05": {"lr": 0.05}, "lr 0.2": {"lr": 0.2},
    "lr_times 0.05": {"lr_times": 0.05}, "lr_times 0.1": {"lr_times": 0.1}, "lr_times 0.2": {"lr_times": 0.2},
    "batch 5": {"batch": 5}, "batch 25": {"batch": 25},
    "gamma 0": {"gamma": 0.0}, "gamma 0.01": {"gamma": 0.01},
    "final_lr 0.1": {"final_lr": 0.1}, "epochs 80": {"epochs": 80},
    "coupled network times": {"offset_window": 0.0}, "offset_window 0.9": {"offset_window": 0.9},
    "coordinate time": {"coordinate": "time"}, "averaged parameters": {},
    "coefficients": {"coefficients": True}, "coefficients, rate 0.02": {"coefficients": True, "lr_coefficients": 0.02},
    "coefficients, rate 0.05": {"coefficients": True, "lr_coefficients": 0.05},
}  # fmt: skip
L2 = make_distance("l2")


class Averaged(Descent):
    """Selects among exponential averages of the parameters over some ten iterations instead of the parameters."""

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


def pairs_of(opened: LoadedModel, teacher_nfe: int, start: int, stop: int) -> Pairs:
    """Teacher pairs of a range of samples."""
    teacher, noise = make_solver("unipc-3"), opened.denoiser.noise
    table = teacher.tableau(noise, teacher.coupled(noise, discretize(noise, teacher_nfe, "karras")))
    x, condition = draw_noise(0, range(start, stop), opened.denoiser.shape), None
    if opened.draw_condition is not None:
        condition = opened.draw_condition(0, range(start, stop))
    given = Pairs(x, x, condition)
    return Pairs(x, generate(opened, table, given), condition)


@torch.no_grad()
def generate(opened: LoadedModel, table: Tableau, pairs: Pairs) -> Tensor:
    """Samples of a schedule from the noise of `pairs`."""
    parts = [pairs[i] for i in torch.arange(len(pairs)).split(250)]
    scale = opened.denoiser.noise.prior_scale
    return torch.cat([sample(opened.denoiser, table, scale * part.noise, part.condition) for part in parts])


def losses(
    opened: LoadedModel, teacher_nfe: int, solvers: tuple[str, ...], nfes: tuple[int, ...], variants: list[str]
) -> Iterator[dict]:
    """Rows: variant, cell, loss on fresh pairs."""
    noise = opened.denoiser.noise
    valid, train = pairs_of(opened, teacher_nfe, 0, COUNT), pairs_of(opened, teacher_nfe, COUNT, COUNT * 3)
    fresh = pairs_of(opened, teacher_nfe, 100_000, 100_000 + FRESH)
    subsets = torch.stack([torch.arange(COUNT) + COUNT * s for s in SEEDS for _ in STARTS])
    seeds = [s for s in SEEDS for _ in STARTS]
    for variant in variants:
        changed = VARIANTS[variant]
        procedures.PROCEDURES["default"] = Averaged if variant == "averaged parameters" else Descent
        for name in solvers:
            solver = make_solver(name)
            for nfe in nfes:
                knots = torch.stack([discretize(noise, solver.steps(nfe), start) for start in STARTS] * len(SEEDS))
                began, config = time.perf_counter(), LearnConfig.of(**changed)
                *_, end = learn(
                    opened.denoiser, solver, knots, train, valid, L2, config, nfe=nfe, seeds=seeds, subsets=subsets
                )
                found = []
                for s in range(len(SEEDS)):
                    best = int(end.best_valid[s * len(STARTS) : (s + 1) * len(STARTS)].argmin()) + s * len(STARTS)
                    table = Tableau(end.tableau.evals[best], end.tableau.state[best], end.tableau.outputs[best])
                    found.append(float(L2(generate(opened, table, fresh), fresh.target).double().mean()))
                loss = math.exp(sum(map(math.log, found)) / len(found))
                seconds = time.perf_counter() - began
                yield {"variant": variant, "cell": f"{opened.id}/{name}/{nfe}", "loss": loss, "seconds": seconds}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ground", choices=GROUNDS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/defaults.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    names, solvers, nfes, teacher_nfe = GROUNDS[given.ground]
    rows, seen = [], ""
    for name in names:
        for row in losses(open_model(name), teacher_nfe, solvers, nfes, given.variants):
            rows.append(row)
            if row["variant"] != seen:
                seen = row["variant"]
                print(name, seen, flush=True)
    found = summary(rows)
    print(json.dumps(found, indent=1))
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    made = {"default is": asdict(LearnConfig()), "summary": found, "rows": rows}
    given.out.write_text(json.dumps(kept | {given.ground: made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
