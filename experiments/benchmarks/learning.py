"""Learning, measured: the default procedure against the published one, on the same pairs, side
by side.

    python experiments/benchmarks/learning.py [--workers 2] [--cells FOLDER] [--out FILE]

Digits model, teacher UniPC-3 with 20 evaluations on the Karras grid, squared distance; seed s
learns from the 50 pairs 50 s … 50 s + 49 and is selected on 50 common ones. Cells: four solvers x
NFE 4, 6, 8, 10. Every worker is one process with one thread that takes one solver after the other;
its times are CPU seconds, which other work on the machine does not lengthen. For every cell and
seed:

    paper        procedure: paper, one member from the log-SNR grid (the published start); timed for
                 one seed
    default      procedure: default, members = 3 seeds x the default starts; "search" is what
                 finding these took coefficients the same with learn.coefficients
    neighbour    procedure: default, from the solution of the next smaller NFE alone
    time         procedure: default, one member from the log-SNR grid, until it is as good as paper
                 ended; to its own end where it never is (counted with that time, and said)

Then, for seed 0, 10,000 fresh samples: the Fréchet distance of the classifier's features to the
reference, beside the teacher's own, and on the first 2,000 of them that to the teacher's and the
loss (of paper, only that); of the best hand-made grid and the best of the default starts too.
Finished cells are kept in CELLS and not run again."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import former
import pandas
import torch
from torch import Tensor

from ld3_dist.core.denoiser import map_condition
from ld3_dist.core.distance import make_distance
from ld3_dist.core.features import Extractor, FeatureMoments
from ld3_dist.core.grid import discretize, lam_range, resample
from ld3_dist.core.learning.descent import Descent, DescentConfig
from ld3_dist.core.learning.learn import LearnConfig, Pairs, Problem, Progress, learn, make_config
from ld3_dist.core.learning.published import Published
from ld3_dist.core.noise import NoiseSchedule
from ld3_dist.core.solver import Solver, Tableau, make_solver
from ld3_dist.metrics.extractors import open_extractor
from ld3_dist.metrics.statistics import FeatureStatistics, frechet_distance
from ld3_dist.models import Model, open_model
from ld3_dist.schedule.sampling import make_samples
from ld3_dist.schedule.starts import start_knots
from ld3_dist.schedule.teaching import Teacher, teach

SOLVERS, NFES, SEEDS = ("unipc-3", "ipndm-3", "dpmpp-3", "ddim"), (4, 6, 8, 10), (0, 1, 2)
HAND_MADE = ("log_snr", "karras")
UNLEARNED = {"hand-made": HAND_MADE, "start": former.STARTS}
FRECHET = ("FID", "FID to teacher")
COUNT, FRESH, SCORED, TEACHER_NFE = 50, 2_000, 10_000, 20
DEFAULT, COEFFICIENTS, PAPER = (
    make_config(**former.SETTINGS),
    make_config(coefficients=True, **former.SETTINGS),
    make_config("paper"),
)
L2 = make_distance("l2")


@dataclass
class Ground:
    """The model, its pairs to learn from, to select by and to measure on; features' moments over
    the data, over the teacher's samples and over the first FRESH of these."""

    opened: Model
    train: Pairs
    valid: Pairs
    fresh: Pairs
    extractor: Extractor
    data: FeatureMoments
    teacher: FeatureMoments
    near: FeatureMoments

    @classmethod
    def prepare(cls) -> Ground:
        """Computed once, in the parent."""
        opened = open_model("digits")
        learning = teach(opened, COUNT * (len(SEEDS) + 1), teacher=Teacher(nfe=TEACHER_NFE))
        fresh = teach(
            opened, teacher=Teacher(nfe=TEACHER_NFE), indices=range(100_000, 100_000 + SCORED)
        )
        extractor = open_extractor("auto", opened)
        assert extractor is not None
        assert opened.data is not None
        found = features(extractor, fresh.target)
        data, teacher, near = map(
            moments, (extractor.features_of(opened.data), found, found[:FRESH])
        )
        return cls(
            opened, learning[COUNT:], learning[:COUNT], fresh, extractor, data, teacher, near
        )


def run(
    ground: Ground, solver: Solver, nfe: int, knots: Tensor, config: LearnConfig, seeds: list[int]
) -> Iterator:
    """Learn members with the pairs of their seeds."""
    subsets = torch.stack([torch.arange(COUNT) + COUNT * s for s in seeds])
    problem = Problem(
        ground.opened.denoiser,
        solver,
        knots,
        ground.train,
        ground.valid,
        L2,
        nfe=nfe,
        seeds=seeds,
        subsets=subsets,
    )
    yield from learn(problem, config)


def last(noise: NoiseSchedule, run: Iterator[Progress]) -> tuple[Progress, float, float, bool]:
    """(the end, seconds, the least gap as a share of the lambda range over all epochs, whether all
    was finite).
    """
    began, gap, finite, progress = time.process_time(), math.inf, True, None
    for progress in run:
        lam = noise.lam(progress.best.knots)
        low, high = lam_range(noise)
        gap = min(gap, float(lam.diff(dim=1).min() / (high - low)))
        finite &= bool(torch.isfinite(progress.best_valid).all())
        finite &= progress.epoch == 0 or bool(torch.isfinite(progress.train).all())
    assert progress is not None
    return progress, time.process_time() - began, gap, finite


def packed(
    ground: Ground, solver: Solver, nfe: int, starts: list[Tensor], config: LearnConfig
) -> dict:
    """Three seeds x starts at once: each seed's best member."""
    members = [(s, knots) for s in SEEDS for knots in starts]
    end, seconds, gap, finite = last(
        ground.opened.denoiser.noise,
        run(
            ground,
            solver,
            nfe,
            torch.stack([k for _, k in members]),
            config,
            [s for s, _ in members],
        ),
    )
    best = end.best_valid.view(len(SEEDS), -1).argmin(1) + torch.arange(len(SEEDS)) * len(starts)
    return {
        "loss": end.best_valid[best].tolist(),
        "seconds": seconds / len(SEEDS),
        "gap": gap,
        "finite": finite,
        "start": (best % len(starts)).tolist(),
        "members": end.best_valid.tolist(),
        "epochs": end.epoch,
        "knots": end.best.knots[best].tolist(),
        "table": table_of(end.tableau, int(best[0])),
    }


def paper(ground: Ground, solver: Solver, nfe: int, knots: Tensor) -> dict:
    """The published procedure: the first seed alone, as it was published, and timed; the others
    side by side.
    """
    noise, others = ground.opened.denoiser.noise, list(SEEDS[1:])
    alone = last(noise, run(ground, solver, nfe, knots[None], PAPER, [SEEDS[0]]))
    ends = [
        alone,
        last(noise, run(ground, solver, nfe, knots.repeat(len(others), 1), PAPER, others)),
    ]
    return {
        "loss": [loss for end, *_ in ends for loss in end.best_valid.tolist()],
        "seconds": alone[1],
        "gap": min(e[2] for e in ends),
        "finite": all(e[3] for e in ends),
        "table": table_of(alone[0].tableau, 0),
    }


def time_to(
    ground: Ground, solver: Solver, nfe: int, knots: Tensor, goals: list[float]
) -> list[tuple[float, bool]]:
    """By seed: seconds until one member from the published start is as good as its goal, and
    whether it ever was.
    """
    found = []
    for s, goal in zip(SEEDS, goals, strict=True):
        began, reached = time.process_time(), False
        for progress in run(ground, solver, nfe, knots[None], DEFAULT, [s]):
            reached = float(progress.best_valid[0]) <= goal
            if reached:
                break
        found.append((time.process_time() - began, reached))
    return found


def table_of(tableau: Tableau, k: int) -> list:
    """A member's table as plain numbers."""
    return [tableau.evals[k].tolist(), tableau.state[k].tolist(), tableau.outputs[k].tolist()]


def fresh(ground: Ground, table: list, scored: bool) -> dict[str, float]:
    """The loss on 2,000 fresh pairs; with `scored`, the Fréchet distance of 10,000 fresh samples
    too.
    """
    pairs = ground.fresh if scored else ground.fresh[:FRESH]
    evals, state, outputs = (torch.tensor(v, dtype=torch.float64) for v in table)
    made = make_samples(ground.opened, Tableau(evals, state, outputs), pairs.noise, pairs.condition)
    loss = float(L2(made[:FRESH], pairs.target[:FRESH]).double().mean())
    if not scored:
        return {"loss": loss}
    found = features(ground.extractor, made)
    distances = (
        frechet_distance(ground.data, moments(found)),
        frechet_distance(ground.near, moments(found[:FRESH])),
    )
    return {"loss": loss} | dict(zip(FRECHET, distances, strict=True))


def features(extractor: Extractor, made: Tensor) -> Tensor:
    """The classifier's features of samples, in batches."""
    with torch.no_grad():
        return torch.cat([extractor.features(part) for part in made.split(500)])


def moments(found: Tensor) -> FeatureMoments:
    """Mean and covariance of features."""
    return FeatureStatistics.of(found).moments


GROUND: list[Ground] = []
"""What the workers find in the memory they were forked from."""


def cells(name: str, folder: Path) -> None:
    """All cells of a solver, from few evaluations to many."""
    torch.set_num_threads(1)
    (ground,) = GROUND
    solver, noise, before = make_solver(name), ground.opened.denoiser.noise, None
    for nfe in NFES:
        file = folder / f"{name}-{nfe}.json"
        if file.exists():
            before = json.loads(file.read_text())["default"]["knots"][0]
            continue
        began = time.process_time()
        starts = [
            start_knots(start, ground.opened, solver, nfe, ground.train) for start in Descent.starts
        ]
        search = time.process_time() - began
        grids = dict(zip(Descent.starts, starts, strict=True))
        grids |= {grid: discretize(noise, solver.steps(nfe), grid) for grid in HAND_MADE}
        (published,) = (grids[start] for start in Published.starts)
        first = next(
            run(ground, solver, nfe, torch.stack([*grids.values()]), DEFAULT, [0] * len(grids))
        )
        found = dict(zip(grids, first.valid.tolist(), strict=True))
        row = {"solver": name, "nfe": nfe, "grids": found, "search": search}
        row["paper"] = paper(ground, solver, nfe, published)
        row["default"] = packed(ground, solver, nfe, starts, DEFAULT)
        row["coefficients"] = packed(ground, solver, nfe, starts, COEFFICIENTS)
        if before is not None:
            knots = resample(noise, torch.tensor(before, dtype=torch.float64), solver.steps(nfe))
            row["neighbour"] = packed(ground, solver, nfe, [knots], DEFAULT)
        row["time"] = time_to(ground, solver, nfe, published, row["paper"]["loss"])
        tables = {
            kind: table_of(first.tableau, [*grids].index(min(of, key=found.__getitem__)))
            for kind, of in UNLEARNED.items()
        }
        tables |= {n: row[n]["table"] for n in ("paper", "default", "coefficients")}
        row["fresh"] = {n: fresh(ground, table, n != "paper") for n, table in tables.items()}
        before = row["default"]["knots"][0]
        file.write_text(json.dumps(row) + "\n")
        print(f"{name} {nfe}: done", flush=True)


def iteration(ground: Ground, name: str, threads: int, members: int = 1) -> dict[str, float]:
    """Seconds of an iteration of learning and of the bare network, forward and backward, on the
    same batch.
    """
    torch.set_num_threads(threads)
    nfe, denoiser = 6, ground.opened.denoiser
    solver, config = make_solver(name), DescentConfig(epochs=6, patience=99)
    knots = discretize(denoiser.noise, solver.steps(nfe), "log_snr").repeat(members, 1)
    session = Descent(
        Problem(
            denoiser,
            solver,
            knots,
            ground.train[:COUNT],
            ground.valid,
            L2,
            seeds=list(range(members)),
        ),
        config,
    )
    rows = members * config.batch
    x = (denoiser.noise.prior_scale * ground.train.noise[:COUNT]).repeat(
        -(-rows // COUNT), 1, 1, 1
    )[:rows]
    condition = map_condition(
        lambda c: c[:COUNT].repeat(-(-rows // COUNT))[:rows], ground.train.condition
    )
    session.epoch(1)
    learning, bare = [], []
    for epoch in range(2, config.epochs + 1):  # in turns, so that both see the same machine
        began = time.perf_counter()
        session.epoch(epoch)
        learning.append((time.perf_counter() - began) / (COUNT // config.batch))
        began = time.perf_counter()
        for t in torch.linspace(40, 0.1, nfe):
            y, at = x.clone().requires_grad_(), t.expand(rows).clone().requires_grad_()
            denoiser(y, at, condition).sum().backward()
        bare.append(time.perf_counter() - began)
    return {"learning": sorted(learning)[len(learning) // 2], "bare": sorted(bare)[len(bare) // 2]}


def speed(ground: Ground) -> dict:
    """Iterations against the bare network, and eight packed members against eight runs of one."""
    found: dict = {"iteration": {}, "packing": {}}
    for threads in (1, 2):
        for members in (1, 6):
            for name in SOLVERS:
                made = iteration(ground, name, threads, members)
                found["iteration"][f"{name}, {members} members, {threads} threads"] = made | {
                    "ratio": made["learning"] / made["bare"]
                }
        for name in SOLVERS:
            one, eight = iteration(ground, name, threads), iteration(ground, name, threads, 8)
            found["packing"][f"{name}, {threads} threads"] = 8 * one["learning"] / eight["learning"]
    return found


def mean(values: Iterable[float]) -> float:
    """Geometric."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def table(rows: list[dict]) -> tuple[list[str], dict]:
    """What is printed, and what is held against the targets."""
    lines, faster, gaps, unsound, missed = [], [], [], [], 0
    worse: dict[str, dict[str, list[str]]] = {
        kind: {what: [] for what in ("loss", *FRECHET)} for kind in UNLEARNED
    }
    for row in rows:
        cell, new = f"{row['solver']}/{row['nfe']}", row["fresh"]
        loss = {
            kind: mean(row[kind]["loss"])
            for kind in ("paper", "default", "coefficients", "neighbour")
            if kind in row
        }
        speeds = [row["paper"]["seconds"] / seconds for seconds, _ in row["time"]]
        missed += sum(not reached for _, reached in row["time"])
        faster += speeds
        lines.append(
            {"cell": cell}
            | {kind: min(row["grids"][name] for name in of) for kind, of in UNLEARNED.items()}
            | loss
            | {
                "default/paper": loss["default"] / loss["paper"],
                "coefficients/default": loss["coefficients"] / loss["default"],
                "neighbour/default": loss.get("neighbour", math.nan) / loss["default"],
                "search s": row["search"],
                "paper s": row["paper"]["seconds"],
                "to paper's loss s": mean([seconds for seconds, _ in row["time"]]),
                "times faster": mean(speeds),
            }
            | {f"fresh {kind}": at["loss"] for kind, at in new.items()}
            | {
                f"{what}, {kind}": at[what]
                for what in FRECHET
                for kind, at in new.items()
                if what in at
            }
        )
        for kind in ("default", "coefficients"):
            gaps.append(row[kind]["gap"])
            unsound += [f"{cell} {kind}"] * (not row[kind]["finite"])
            for than, lists in worse.items():
                for what, cells_ in lists.items():
                    cells_ += [f"{cell} {kind}"] * (new[kind][what] > new[than][what])
    whole = pandas.DataFrame(lines)
    summary = {
        "default / paper": mean(whole["default/paper"]),
        "default / paper, worst cell": max(whole["default/paper"]),
        "paper's time / default's to paper's loss": mean(faster),
        "seeds that never reach it": missed,
        "coefficients / default": mean(whole["coefficients/default"]),
        "neighbour's start / default": mean(whole["neighbour/default"].dropna()),
        "smallest gap": min(gaps),
        "not finite": unsound,
        "worse on fresh samples than the best grid": worse,
    }
    text = whole.to_string(
        index=False, na_rep="", float_format=lambda value: f"{value:.3g}", line_width=170
    )
    return text.splitlines(), summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--solvers", nargs="+", default=SOLVERS)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/learning.json"))
    parser.add_argument("--cells", type=Path, default=Path("runs/learning"))
    asked = parser.parse_args()
    folder = asked.cells
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    ground = Ground.prepare()
    work = multiprocessing.get_context("fork")  # the parent has used one thread and no autograd
    GROUND.append(ground)
    with work.Pool(asked.workers) as pool:
        pool.starmap(cells, [(name, folder) for name in asked.solvers], chunksize=1)
    rows = [json.loads((folder / f"{s}-{n}.json").read_text()) for n in NFES for s in asked.solvers]
    lines, summary = table(rows)
    summary["the teacher's own Fréchet distance"] = frechet_distance(ground.data, ground.teacher)
    fast = speed(ground)
    print("\n".join(lines), json.dumps(summary | fast, indent=1), sep="\n")
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "workers": asked.workers,
        "torch": torch.__version__,
    }
    whole = {"machine": machine, "summary": summary, "speed": fast, "table": lines, "cells": rows}
    asked.out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
