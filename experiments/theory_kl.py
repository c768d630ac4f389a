"""Theorem 1 of LD3 against the divergence it bounds, for every schedule of a sweep.

    python experiments/theory_kl.py runs/theory_kl [--output results/theory_kl]

reads the learned schedules and hand-made grids of experiments/theory_kl.yaml and writes

    theory.csv    a row per schedule: KL(q || p), the terms of the bound, checks of invertibility;
                  kl_all_preimages, in one dimension, for grids and for schedules that fold
    summary.csv   a row per model, solver, NFE and gamma: means over seeds with 95 % intervals
    theory.png    the bound over the divergence

A sweep's metrics see samples, and a divergence needs the map that made them. That is why this is a
script. It goes on where it was stopped: schedules that theory.csv has are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import ld3_dist as ld3
from ld3_dist.core import theory
from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.solver import Tableau, make_solver
from ld3_dist.metrics.paired import interval_over_sets

MODELS = {
    "d1": "analytic:mixture-1d",
    "d2": "analytic:mixture-2d?components=5&std=0.2",
    "d8": "analytic:random-mixture?shape=8",
}
DRAWS = 200
NAMES = ("key", "model", "dim", "solver", "nfe", "kind", "start", "gamma", "radius", "seed")
TERMS = ("kl", "bound", "mean_square_bound", "square", "linear", "jacobian", "longest", "typical")


def table_of(model: ld3.Model, solver: str, knots: Any, evals: Any) -> Tableau:
    """The table of a row's knots and network times."""
    grid = Grid(*(torch.tensor(list(times), dtype=torch.float64) for times in (knots, evals)))
    return make_solver(solver).tableau(model.noise, grid)


def teacher_of(model: ld3.Model) -> Tableau:
    """The teacher of the sweep: unipc-3, 20 evaluations, Karras."""
    rule = make_solver("unipc-3")
    return rule.tableau(
        model.noise, rule.coupled(model.noise, discretize(model.noise, 20, "karras"))
    )


def points_of(dim: int) -> theory.Points:
    """Quadrature on the line, and the same draws for all schedules in more dimensions."""
    return theory.line() if dim == 1 else theory.draws(DRAWS, dim)


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one schedule."""
    model = ld3.load_model(MODELS[row["model"]])
    dim = torch.Size(model.denoiser.shape).numel()
    student = table_of(model, row["solver"], row["knots"], row["evals"])
    teacher, radius = teacher_of(model), 0.0 if pd.isna(row["radius"]) else float(row["radius"])
    found = theory.divergence(model.denoiser, teacher, student, points_of(dim), radius)
    folded = None
    if dim == 1 and (found.reason or row["kind"] == "baseline"):
        folded = theory.divergence_on_line(model.denoiser, teacher, student)
    labels = {name: row.get(name) for name in NAMES} | {"dim": dim, "radius": radius}
    spelled = {name: " ".join(repr(float(t)) for t in row[name]) for name in ("knots", "evals")}
    return labels | asdict(found) | {"kl_all_preimages": folded} | spelled


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with 95 % intervals, and how many schedules are invertible."""
    rows = []
    cells = ["model", "dim", "solver", "nfe", "kind", "start", "gamma", "radius"]
    for labels, group in table.groupby(cells, dropna=False, sort=True):
        row = dict(zip(cells, labels, strict=True)) | {"schedules": len(group)}
        sound = group[group["reason"].isna() | (group["reason"] == "")]
        row |= {"invertible": len(sound), "within_radius": group["within"].mean()}
        ratio = (sound["bound"] / sound["kl"]).rename("tightness")
        other = (sound["mean_square_bound"] / sound["kl"]).rename("mean_square_tightness")
        for values in (*(sound[name] for name in TERMS), ratio, other):
            estimate = interval_over_sets(values.to_numpy()) if len(values) > 1 else None
            row[values.name] = values.mean() if len(values) else None
            if estimate is not None:
                row |= {f"{values.name}_low": estimate.low, f"{values.name}_high": estimate.high}
        rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, file: Path) -> None:
    """Bound over divergence, a panel per dimension; non-invertible students at the left edge."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (dim, group) in zip(panels, table.groupby("dim"), strict=True):
        low = math.inf
        for (solver, nfe), part in group.groupby(["solver", "nfe"]):
            known = part[part["kl"].notna()]
            low = min(low, known["kl"].min()) if len(known) else low
            panel.loglog(known["kl"], known["bound"], ".", label=f"{solver}, {nfe} evaluations")
        lost = int(group["kl"].isna().sum())
        ends = [low, max(group["kl"].max(), low)]
        panel.loglog(ends, ends, "k-", lw=0.8, label="bound = KL")
        panel.set(title=f"d = {dim}, {lost} of {len(group)} not invertible", xlabel="true KL")
    panels[0].set_ylabel("bound of Theorem 1")
    panels[0].legend(fontsize=7)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep")
    parser.add_argument("--output", default="results/theory_kl")
    parser.add_argument(
        "--tables", action="store_true", help="summary and figure of what theory.csv has, no more"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(given.output)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "theory.csv"
    if not given.tables:
        measure(given.sweep, file)
    table = pd.read_csv(file)
    summary(table).to_csv(folder / "summary.csv", index=False, float_format="%.6g")
    draw(table, folder / "theory.png")


def measure(sweep: str, file: Path) -> None:
    """Append the rows that theory.csv does not have yet, then put all in the sweep's order."""
    done = set(pd.read_csv(file)["key"]) if file.exists() else set()
    frame = ld3.load_results(sweep)
    frame = frame[frame["status"] == "ok"]
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = None
        for row in frame.to_dict("records"):
            if row["key"] in done:
                continue
            made = measured({str(name): value for name, value in row.items()})
            if writer is None:
                writer = csv.DictWriter(stream, list(made), lineterminator="\n")
                if not done:
                    writer.writeheader()
            writer.writerow(made)
            stream.flush()
    places = {key: place for place, key in enumerate(frame["key"])}
    head, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    lines.sort(key=lambda line: places.get(line.partition(",")[0], len(places)))
    file.write_text("".join([head, *lines]), encoding="utf-8")


if __name__ == "__main__":
    main()
