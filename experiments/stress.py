"""The tables and the figure of experiments/stress.yaml, from the folder of its sweep.

    python experiments/stress.py runs/stress [--output results/stress]

    stress.csv    a row per learned schedule, grid and teacher: scores and signs of failure
    summary.csv   a row per distribution and NFE: the teacher's scores, the best hand-made grid's,
                  and means over seeds of the learned ones with 95 % intervals
    stress.png    recall of modes, the 99 % tail and the discrepancy by distribution

The page of the sweep shows losses; the scores of known distributions are beside each other here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import ld3_dist as ld3
from ld3_dist.metrics.paired import interval_over_sets
from ld3_dist.store.opening import open_storage
from ld3_dist.store.results import read_evaluations
from ld3_dist.store.symptoms import symptoms

SCORES = {
    "metric.modes.recall": "recall", "metric.modes.shift": "shift", "metric.tail_99": "tail_99",
    "metric.mmd": "mmd", "fid": "fid", "eval_loss": "loss",
}  # fmt: skip


def table_of(place: str) -> pd.DataFrame:
    """Rows of learned schedules, grids and teachers with their scores and signs."""
    frame = ld3.load_results(place)
    signs: dict[str, list[str]] = {}
    for one in symptoms(frame):
        signs.setdefault(one.key, []).append(one.sign)
    frame = frame.assign(signs=["; ".join(signs.get(key, [])) for key in frame["key"]])
    own = read_evaluations(open_storage(place))
    own = own[own["kind"] == "teacher"].assign(
        model=lambda t: [_model(key, frame) for key in t["key"]], nfe=20, status="ok", signs=""
    )
    own = own.sort_values("model")
    kept = ["model", "nfe", "kind", "start", "seed", "status", "signs", *SCORES]
    both = [part.reindex(columns=kept) for part in (own, frame)]
    return pd.concat([part.dropna(axis=1, how="all") for part in both]).rename(columns=SCORES)


def _model(key: str, frame: pd.DataFrame) -> str:
    """The model of a teacher's evaluation, whose key is teacher:<teacher>."""
    rows = frame[frame["teacher"] == key.removeprefix("teacher:")]
    return str(rows["model"].iloc[0])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row per distribution and NFE."""
    rows = []
    learned = table[table["kind"] == "learned"]
    for (model, nfe), group in learned.groupby(["model", "nfe"], sort=False):
        row = {"model": model, "nfe": nfe, "seeds": len(group)}
        row["mode_collapse"] = int(group["signs"].str.contains("mode collapse").sum())
        row["lost_modes"] = int(group["signs"].str.contains("lost modes").sum())
        row["unstable"] = int(group["signs"].str.contains("unstable").sum())
        grids = table[
            (table["kind"] == "baseline") & (table["model"] == model) & (table["nfe"] == nfe)
        ]
        best = grids.sort_values("loss").head(1)
        teacher = table[(table["kind"] == "teacher") & (table["model"] == model)]
        for name in SCORES.values():
            row[f"{name}_teacher"] = teacher[name].mean()
            row[f"{name}_grid"] = best[name].mean()
            estimate = interval_over_sets(group[name].to_numpy(dtype=float))
            row |= {name: estimate.value, f"{name}_low": estimate.low,
                    f"{name}_high": estimate.high}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def draw(found: pd.DataFrame, file: Path) -> None:
    """Three panels: the learned mean with its interval, the best grid, the teacher."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {
        "recall": "modes found (1 = all)",
        "tail_99": "99 % tail over the exact one (1 = right)",
        "mmd": "discrepancy from exact samples (0 = none)",
    }
    names = list(dict.fromkeys(found["model"]))
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for shift, (nfe, group) in zip((-0.15, 0.15), found.groupby("nfe"), strict=True):
            at = [names.index(model) + shift for model in group["model"]]
            error = [group[name] - group[f"{name}_low"], group[f"{name}_high"] - group[name]]
            panel.errorbar(at, group[name], error, fmt="o", ms=4, label=f"learned, {nfe}")
            panel.plot(at, group[f"{name}_grid"], "x", label=f"best hand-made grid, {nfe}")
        first = found.drop_duplicates("model")
        panel.plot(range(len(names)), first[f"{name}_teacher"], "k_", ms=12, label="teacher, 20")
        panel.set_xticks(range(len(names)), names, rotation=60, ha="right")
        panel.set_title(title, fontsize=9)
    panels[0].legend(fontsize=7)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep")
    parser.add_argument("--output", default="results/stress")
    given = parser.parse_args()
    folder = Path(given.output)
    folder.mkdir(parents=True, exist_ok=True)
    table = table_of(given.sweep)
    table.to_csv(folder / "stress.csv", index=False, float_format="%.6g")
    found = summary(table)
    found.to_csv(folder / "summary.csv", index=False, float_format="%.5g")
    draw(found, folder / "stress.png")


if __name__ == "__main__":
    main()
