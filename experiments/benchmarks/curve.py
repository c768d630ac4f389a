"""One curve for any NFE, measured against a schedule for every NFE, on the same pairs.

    python experiments/benchmarks/curve.py [--cells FOLDER] [--out FILE] [--solvers unipc-3 …]

Digits model, teacher UniPC-3 with 20 evaluations on the Karras grid, squared distance, 100 pairs to
learn from and 50 held out, seed 0, one thread, CPU seconds. For each solver:

    single   procedure default with its default starts, for one NFE from 4 to 10 alone
    all      procedure curve on the NFEs 4 to 10 at once
    even     procedure curve on 4, 6, 8 and 10; its grids at 5, 7 and 9 are of NFEs it never saw

All are measured on the same 2,000 fresh pairs that nothing was chosen on: mean and median of the
squared distance. The figures are the curve's over the single schedule's of the same NFE; the time
is the curve's over the mean of the seven single schedules'. Finished cells are kept in the folder
and not run again."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ld3_dist.core.distance import make_distance
from ld3_dist.core.learning.family import FamilyProgress
from ld3_dist.core.learning.pairs import Pairs
from ld3_dist.core.solver import Tableau
from ld3_dist.models import Model, open_model
from ld3_dist.schedule.learning import learning
from ld3_dist.schedule.sampling import make_samples
from ld3_dist.schedule.teaching import teach

NFES, EVEN = tuple(range(4, 11)), (4, 6, 8, 10)
TRAIN, HELD, FRESH, FIRST_FRESH = 100, 50, 2000, 100_000
L2 = make_distance("l2")


def fresh_loss(model: Model, fresh: Pairs, tableau: Tableau) -> dict[str, float]:
    """Mean and median of the squared distance on the fresh pairs."""
    made = make_samples(model, tableau, fresh.noise, fresh.condition)
    losses = L2(made, fresh.target).double()
    return {"mean": losses.mean().item(), "median": losses.median().item()}


def single(model: Model, pairs: Pairs, fresh: Pairs, solver: str, nfe: int) -> dict[str, Any]:
    """A schedule for one NFE alone: the best member of the default procedure."""
    began, progress = time.process_time(), None
    for progress in learning(model, solver, nfe, pairs[HELD:], pairs[:HELD]):  # noqa: B007
        pass
    assert progress is not None
    seconds, k = time.process_time() - began, int(progress.best_valid.argmin())
    found = fresh_loss(model, fresh, progress.tableau.take(torch.tensor(k)))
    evals = progress.network_evals
    return found | {
        "seconds": seconds,
        "valid": progress.best_valid[k].item(),
        "network_evals": evals,
    }


def curve(
    model: Model,
    pairs: Pairs,
    fresh: Pairs,
    solver: str,
    nfes: tuple[int, ...],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """A curve learned on some NFEs, measured at all of NFES."""
    began, progress = time.process_time(), None
    options: dict[str, Any] = {"procedure": "curve"} | settings
    for progress in learning(  # noqa: B007
        model, solver, nfes, pairs[HELD:], pairs[:HELD], **options
    ):
        pass
    assert isinstance(progress, FamilyProgress)
    seconds, k = time.process_time() - began, int(progress.best_valid.argmin())
    found: dict[str, Any] = {
        "seconds": seconds,
        "valid": progress.each_best[:, k].tolist(),
        "network_evals": progress.network_evals,
        "best_epoch": int(progress.best_epoch[k]),
        "member": k,
    }
    for nfe in NFES:
        with torch.no_grad():
            table = progress.curve.tableau(nfe)[1].take(torch.tensor(k))
        found[str(nfe)] = fresh_loss(model, fresh, table)
    return found


def kept(folder: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A cell from its file, or made and written."""
    file = folder / f"{name}.json"
    if not file.exists():
        found = make()
        print(name, json.dumps(found), flush=True)
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


def mean_log(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(cells: dict[str, dict[str, Any]], solver: str, name: str) -> dict[str, Any]:
    """The curve over the single schedules, at those NFEs of the figure that are there."""
    own = cells[f"{name}-{solver}"]
    singles = {n: cells[f"single-{solver}-{n}"] for n in NFES if f"single-{solver}-{n}" in cells}
    asked = NFES if name == "all" else [n for n in NFES if n not in EVEN]
    found: dict[str, Any] = {}
    for kind in ("mean", "median"):
        ratios = {n: own[str(n)][kind] / singles[n][kind] for n in asked if n in singles}
        found |= shown(kind, ratios)
    if len(singles) == len(NFES):
        seconds = sum(one["seconds"] for one in singles.values())
        found["time in single schedules"] = round(own["seconds"] * len(NFES) / seconds, 2)
    return found


def shown(kind: str, ratios: dict[int, float]) -> dict[str, Any]:
    """Ratios by NFE, the worst and the geometric mean; nothing of none."""
    if not ratios:
        return {}
    return {
        kind: {str(n): round(ratio, 3) for n, ratio in ratios.items()},
        f"{kind}, worst": round(max(ratios.values()), 3),
        f"{kind}, geometric mean": round(mean_log(list(ratios.values())), 3),
    }


def report(cells: dict[str, dict[str, Any]], out: Path) -> None:
    """Write the figures of the cells that are there."""
    names = [(name, solver) for name, _, solver in (key.partition("-") for key in cells)]
    body = {
        f"{solver}, {name}": summary(cells, solver, name)
        for name, solver in names
        if name != "single"
    }
    out.write_text(json.dumps({"curve over single": body, "cells": cells}, indent=1) + "\n")
    print(json.dumps(body, indent=1))


def main() -> None:
    """Run the cells that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=Path("curve-cells"))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/curve.json"))
    parser.add_argument("--solvers", nargs="+", default=["unipc-3", "dpmpp-3"])
    options = parser.parse_args()
    options.cells.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model = open_model("digits")
    pairs = teach(model, HELD + TRAIN)
    fresh = teach(model, indices=range(FIRST_FRESH, FIRST_FRESH + FRESH))
    cells: dict[str, dict[str, Any]] = {}
    for solver in options.solvers:
        for name, nfes in (("all", NFES), ("even", EVEN)):
            make = lambda s=solver, n=nfes: curve(model, pairs, fresh, s, n, {})
            cells[f"{name}-{solver}"] = kept(options.cells, f"{name}-{solver}", make)
        for nfe in NFES:
            make = lambda s=solver, n=nfe: single(model, pairs, fresh, s, n)
            cells[f"single-{solver}-{nfe}"] = kept(options.cells, f"single-{solver}-{nfe}", make)
        report(cells, options.out)


if __name__ == "__main__":
    main()
