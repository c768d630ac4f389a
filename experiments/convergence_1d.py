"""How surely learning finds the best schedule there is, for every solver family, on a line.

    python experiments/convergence_1d.py        goes on where it was stopped; minutes on one core

A three-component mixture with its exact flow as the teacher, 3 evaluations, hard teacher forcing,
full batches: learning and the search for the optimum then minimise the same function. There are
five seeds, each with its own 50 pairs, and eight hand-made starts. The optimum of a seed is the
better of a differential evolution over the unit cube (`benchmarks/global_optimum.py`), refined by
L-BFGS-B, and the best learned member.

A sweep does not fit: it chooses by held-out pairs, so that its losses have no optimum that could be
searched for, and it has no search for one.

Writes results/convergence_1d: members.csv (a row per solver, seed and start: loss over optimum),
curves.csv (loss over optimum, epoch by epoch, medians and quartiles over members), summary.csv (a
row per solver), and two figures.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from global_optimum import STARTS, Search

from ld3_dist.core.distance import make_distance
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.learn import Pairs, Problem, learn, make_config
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.metrics.paired import interval_over_sets
from ld3_dist.models.analytic.mixture import mixture_1d

FOLDER = Path(__file__).parents[1] / "results" / "convergence_1d"
SOLVERS = ("ddim", "dpmpp-2", "unipc-2", "ipndm-2", "deis-2", "heun", "dpm-2", "euler")
NFE, SEEDS, PAIRS = 3, 5, 50
KEPT = (1, 2, 5, 10, 20, 50, 100, 150, 200, 250, 300)
"""Epochs of the curves that are written."""
CONFIG = make_config(
    gamma=0.0, offset_window=0.5, lr=0.1, lr_times=0.5, final_lr=1e-3, epochs=300, batch=PAIRS,
    patience=300,
)  # fmt: skip


def pairs_of(seed: int) -> Pairs:
    """The pairs of a seed: unit noise and the exact end points of the flow."""
    noise, mixture = EDM(), mixture_1d(EDM())
    x = draw_noise(seed, range(PAIRS), (1,)).double()
    return Pairs(x, mixture.transport(noise.prior_scale * x, noise.t_max, noise.t_min))


def learned(name: str) -> np.ndarray:
    """Losses [epochs, seeds * starts] of all members, starts varying fastest.

    The loss of an epoch is that before its step, so that epoch 1 shows the start.
    """
    solver, noise = make_solver(name), EDM()
    pool = Pairs.joined([pairs_of(seed) for seed in range(SEEDS)])
    starts = torch.stack([discretize(noise, solver.steps(NFE), start) for start in STARTS])
    subsets = torch.arange(SEEDS * PAIRS).reshape(SEEDS, PAIRS).repeat_interleave(len(STARTS), 0)
    problem = Problem(
        mixture_1d(noise), solver, starts.repeat(SEEDS, 1), pool, pool[:2], make_distance("l2"),
        nfe=NFE, subsets=subsets,
    )  # fmt: skip
    losses = [progress.train.numpy() for progress in learn(problem, CONFIG) if progress.epoch]
    return np.stack(losses)


def optimum(name: str, seed: int) -> tuple[float, dict[str, str]]:
    """The lowest loss that differential evolution finds for a seed's pairs, and its grid."""
    search = Search(make_solver(name), NFE)
    search.pairs = pairs_of(seed)
    value, at = search.run(seed)
    grid = search.grid(torch.as_tensor(at)[None]).member(0)
    spell = lambda times: " ".join(map(repr, times.tolist()))
    return value, {"knots": spell(grid.knots), "evals": spell(grid.evals)}


def write(file: Path, rows: list[dict]) -> None:
    """Append rows to a table."""
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def run(name: str) -> None:
    """One solver: learn all members, search all optima, write both."""
    losses = learned(name)
    best = np.nanmin(losses, 0).reshape(SEEDS, len(STARTS))
    members, scale = [], []
    for seed in range(SEEDS):
        found, grid = optimum(name, seed)
        lowest = min(found, float(best[seed].min()))
        scale += [lowest] * len(STARTS)
        for start, loss in zip(STARTS, best[seed], strict=True):
            members.append({
                "solver": name, "nfe": NFE, "seed": seed, "start": start, "loss": float(loss),
                "optimum": lowest, "evolution": found, "ratio": float(loss) / lowest, **grid,
            })  # fmt: skip
    falls = np.minimum.accumulate(losses, 0) / np.array(scale)
    curves = []
    for epoch in KEPT:
        low, middle, high = np.quantile(falls[epoch - 1], [0.25, 0.5, 0.75])
        curves.append({"solver": name, "epoch": epoch, "quartile": low, "median": middle,
                       "upper_quartile": high, "best": falls[epoch - 1].min()})  # fmt: skip
    write(FOLDER / "curves.csv", curves)
    write(FOLDER / "members.csv", members)


def summary(members: pd.DataFrame) -> pd.DataFrame:
    """A row per solver: how near the best of the starts comes, and how many starts come near."""
    rows = []
    for name, group in members.groupby("solver", sort=False):
        best = group.groupby("seed")["ratio"].min()
        near = group.assign(near=group["ratio"] < 1.01).groupby("seed")["near"].mean()
        two = group[group["start"].isin(["log_snr", "karras"])].groupby("seed")["ratio"].min()
        interval = interval_over_sets(near.to_numpy())
        rows.append({
            "solver": name, "seeds": len(best), "starts": group["start"].nunique(),
            "best_of_starts": best.mean(), "worst_seed": best.max(),
            "seeds_within_1_percent": int((best < 1.01).sum()),
            "two_starts": two.mean(), "two_starts_within_1_percent": int((two < 1.01).sum()),
            "starts_within_1_percent": near.mean(),
            "starts_low": max(0.0, interval.low), "starts_high": min(1.0, interval.high),
            "median_ratio": group["ratio"].median(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def draw(curves: pd.DataFrame, members: pd.DataFrame) -> None:
    """Loss over optimum against epochs, and every member's end by start."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, group in curves.groupby("solver", sort=False):
        (drawn,) = left.loglog(group["epoch"], group["median"], label=name)
        left.fill_between(
            group["epoch"], group["quartile"], group["upper_quartile"], alpha=0.12,
            color=drawn.get_color(),
        )  # fmt: skip
    left.set(xlabel="epoch", ylabel="loss over optimum", title="median and quartiles of 40 members")
    left.legend(fontsize=7, ncol=2)
    names = list(dict.fromkeys(members["solver"]))
    for i, start in enumerate(STARTS):
        group = members[members["start"] == start]
        at = [names.index(n) + (i - 3.5) / 12 for n in group["solver"]]
        right.semilogy(at, group["ratio"], ".", ms=4, label=start)
    right.set_xticks(range(len(names)), names, rotation=40)
    right.axhline(1.01, color="k", lw=0.6)
    right.set(title="where each start ends (line: 1 % above the optimum)")
    right.legend(fontsize=6, ncol=2)
    figure.savefig(FOLDER / "convergence_1d.png", dpi=110)


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "members.csv"
    done = set(pd.read_csv(file)["solver"]) if file.exists() else set()
    for name in SOLVERS:
        if name not in done:
            run(name)
            print(name, flush=True)
            members = pd.read_csv(file)
            summary(members).to_csv(FOLDER / "summary.csv", index=False, float_format="%.5g")
    members, curves = pd.read_csv(file), pd.read_csv(FOLDER / "curves.csv")
    curves = curves.drop_duplicates(["solver", "epoch"], keep="last")
    draw(curves[curves["solver"].isin(set(members["solver"]))], members)


if __name__ == "__main__":
    main()
