"""How soon learning is as good as the published procedure ends.

    python experiments/benchmarks/learning.py [--cells unipc-3/4 …] [--seeds 0 …] [--workers 2]
        [--out runs/learning] [--table FILE]

Model, teacher, cells, pairs and fresh pairs are those of generalisation.py, which measures what
every variant ends with. For each cell and seed, one process with one thread first runs `procedure:
paper` on 50 pairs to its own end; its time is in CPU seconds, which other work on the machine
hardly lengthens. Then each of three others learns until its held-out loss is as low, on the same 50
held-out pairs:

    default               two starts, 100 pairs; the time holds the search for the second start
    one start             `later:log_snr` alone, 100 pairs
    one start, 50 pairs   the same on the pairs of `paper`

At that moment the schedule is judged on the 2,000 fresh pairs. One that ends before it is as good
counts with its whole time, and `reached` is false. Beside them stand the fresh losses of two
hand-made grids.

Finished files are kept in the folder and not made again; `--table` writes all of them to one file.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generalisation import L2, NFES, SOLVERS, VARIANTS, Variant, ground, problem_of

from ld3_dist.core.learning.learn import Progress, learn, make_config
from ld3_dist.core.solver import Tableau
from ld3_dist.schedule.sampling import make_samples
from ld3_dist.schedule.teaching import Teacher

HAND_MADE = ("log_snr", "karras")
FASTER = {
    "default": VARIANTS["default"],
    "one start": Variant(100, 50, ("later:log_snr",), "default", base={}),
    "one start, 50 pairs": Variant(50, 50, ("later:log_snr",), "default", base={}),
}


def progress_of(cell: str, seed: int, v: Variant) -> Iterator[Progress]:
    """Learn a cell of digits with a variant's pairs, starts and settings."""
    name, _, nfe = cell.rpartition("/")
    problem = problem_of("digits", name, int(nfe), seed, v)
    procedure = "default" if v.procedure == "tricks" else v.procedure
    yield from learn(problem, make_config(procedure, **(v.base | v.settings)))


def best(progress: Progress) -> Tableau:
    """The table of the member with the lowest held-out loss."""
    return progress.tableau.take(progress.best_valid.argmin())


def fresh_loss(tableau: Tableau) -> dict[str, float]:
    """Mean and median on the fresh pairs."""
    opened, _, _, fresh = ground("digits")
    loss = L2(make_samples(opened, tableau, fresh.noise, fresh.condition), fresh.target).double()
    return {"mean": float(loss.mean()), "median": float(loss.median())}


def hand_made(cell: str) -> dict[str, Tableau]:
    """The tables of the hand-made grids."""
    name, _, nfe = cell.rpartition("/")
    opened = ground("digits")[0]
    return {grid: Teacher(name, int(nfe), grid).tableau(opened) for grid in HAND_MADE}


def until(cell: str, seed: int, v: Variant, goal: float) -> dict[str, Any]:
    """Learn until the held-out loss is at most `goal`, or to the end."""
    began, progress = time.process_time(), None
    for progress in progress_of(cell, seed, v):
        if float(progress.best_valid.min()) <= goal:
            break
    assert progress is not None
    seconds, valid = time.process_time() - began, float(progress.best_valid.min())
    return {
        "seconds": seconds, "epoch": progress.epoch, "valid": valid, "reached": valid <= goal,
        "fresh": fresh_loss(best(progress)),
    }  # fmt: skip


def times(job: tuple[str, int, Path]) -> str:
    """Measure a cell with one seed, and write what came out."""
    cell, seed, out = job
    file = out / f"{cell.replace('/', '-')}-{seed}.json"
    if file.exists():
        return f"{file.name}: there"
    ground("digits")
    paper = until(cell, seed, VARIANTS["published"], -math.inf)
    found: dict[str, Any] = {"cell": cell, "seed": seed, "paper": paper}
    found |= {name: until(cell, seed, v, paper["valid"]) for name, v in FASTER.items()}
    if seed == 0:
        found["grids"] = {grid: fresh_loss(tableau) for grid, tableau in hand_made(cell).items()}
    file.write_text(json.dumps(found) + "\n")
    speeds = (f"{name} {paper['seconds'] / found[name]['seconds']:.1f}" for name in FASTER)
    return f"{file.name}: {', '.join(speeds)} times faster"


def mean(values: list[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many times faster each is, over cells (geometric means of their seeds) and all runs."""
    found = {}
    for name in FASTER:
        cells: dict[str, list[float]] = {}
        for row in rows:
            speed = row["paper"]["seconds"] / row[name]["seconds"]
            cells.setdefault(row["cell"], []).append(speed)
        over = {
            kind: mean([row[name]["fresh"][kind] / row["paper"]["fresh"][kind] for row in rows])
            for kind in ("mean", "median")
        }
        speeds = {cell: mean(values) for cell, values in cells.items()}
        found[name] = {
            "times faster": mean([*speeds.values()]),
            "least cell": min(speeds, key=speeds.__getitem__), "least": min(speeds.values()),
            "runs": len(rows), "never as good": sum(not row[name]["reached"] for row in rows),
            "fresh loss over paper's": over,
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="*", default=[f"{s}/{n}" for s in SOLVERS for n in NFES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(asked.workers) as pool:
        jobs = [(cell, seed, asked.out) for seed in asked.seeds for cell in asked.cells]
        for line in pool.imap(times, jobs, chunksize=1):
            print(line, flush=True)
    rows = [json.loads(file.read_text()) for file in sorted(asked.out.glob("*.json"))]
    found = summary(rows)
    print(json.dumps(found, indent=1))
    if asked.table:
        lines = ",\n".join(map(json.dumps, rows))
        asked.table.write_text(f'{{"summary": {json.dumps(found)},\n"cells": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
