"""Sentences with numbers of results/README.md and the pages beside it, made from the tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ld3_dist import load_results
from ld3_dist.metrics.paired import interval_over_sets
from ld3_dist.report.crosstab import chosen, joined
from ld3_dist.report.only import only
from ld3_dist.report.ranks import differences

RESULTS = Path(__file__).parents[2] / "results"


def factor(frame: pd.DataFrame, level: float, base: float, value: str = "eval_loss") -> str:
    """The ratio of `value` at two gammas, with its interval: paired, geometric mean over cells."""
    cells = ["model", "solver", "nfe", "seed"]
    wide = frame.pivot_table(index=cells, columns="gamma", values=value).dropna()
    logs = np.log(wide[level] / wide[base]).groupby("seed").mean()
    found = interval_over_sets(logs.to_numpy())
    return f"{np.exp(found.value):.2f} ({np.exp(found.low):.2f} to {np.exp(found.high):.2f})"


def theory() -> list[str]:
    table = pd.read_csv(RESULTS / "theory_kl/theory.csv")
    learned = table[table["kind"] == "learned"]
    known = learned[learned["kl"].notna()]
    tight, square = known["bound"] / known["kl"], known["mean_square_bound"] / known["kl"]
    low, middle, high = tight.quantile([0.25, 0.5, 0.75])
    radial = ((known["square"] + known["linear"]) / known["bound"]).median()
    soft = learned[(learned["gamma"] > 0) & learned["within"].notna()]
    said = [
        f"{len(known)} of {len(learned)} learned schedules are invertible wherever it was checked",
        f"the bound is {middle:.3g} times the divergence in the median (quartiles {low:.3g} to "
        f"{high:.3g})",
        f"with the mean square of the moves it is {square.median():.3g} times",
        f"{radial:.0%} of the bound are its two terms in r",
        f"all points that were checked have their match within r for "
        f"{int((soft['within'] > 1 - 1e-9).sum())} of {len(soft)} soft schedules, "
        f"{soft['within'].median():.0%} of the points in the median",
    ]
    line = table[(table["dim"] == 1) & (table["solver"] == "ddim") & (table["nfe"] == 4)]
    hard = interval_over_sets(line[line["gamma"] == 0]["kl"].to_numpy())
    grids = line[line["kind"] == "baseline"]["kl"].min()
    said.append(f"{hard.value:.2f} ({hard.low:.2f} to {hard.high:.2f}) against {grids:.2f}")
    for gamma in (0.1, 1.0):
        for nfe in sorted(known["nfe"].unique()):
            ratio = factor(known[known["nfe"] == nfe], gamma, 0.0, "kl")
            said.append(f"gamma {gamma:g} over gamma 0 at {nfe} evaluations: {ratio}")
    for gamma, dim, words in ((0.1, 8, "eight"), (1.0, 2, "two")):
        ratio = factor(known[(known["dim"] == dim) & (known["nfe"] == 4)], gamma, 0.0, "kl")
        where = f"in {words} dimensions at 4 evaluations"
        said.append(f"{where}: gamma {gamma:g} over gamma 0 is {ratio}")
    return said


RADII = (("radius", "digits"), ("radius_fashion", "fashion"))
"""Folders of the sweeps of the radius, and their models."""


def radius() -> list[str]:
    """The lines of two tables: a radius over all cells, and by number of evaluations."""
    lines, by_nfe = [], []
    for folder, model in RADII:
        found = pd.read_csv(RESULTS / folder / "report/ablation.csv").set_index(["level", "score"])
        frame = load_results(str(RESULTS / folder))
        rows = frame[frame["kind"] == "learned"]
        for level in sorted(set(rows["gamma"]) - {0.0}):
            soft = rows[rows["gamma"] == level]
            cells = [ratio_of(found.loc[(level, score)]) for score in ("loss", "fid")]
            cells.append(factor(rows, level, 0.0, "train_loss"))
            cells.append(f"{(soft['noise_moved'] / soft['radius']).median():.0%}")
            lines.append(f"| {model} | {level:g} | {' | '.join(cells)} |")
            for nfe, some in rows.groupby("nfe"):
                by_nfe.append(f"| {model} | {level:g} | {nfe} | {factor(some, level, 0.0)} |")
    return lines + by_nfe


def radius_in_short() -> list[str]:
    """The effect of ten and of a hundred times the paper's gamma on fresh losses."""
    said = []
    for folder, model in RADII:
        found = pd.read_csv(RESULTS / folder / "report/ablation.csv").set_index(["level", "score"])
        for level in (0.01, 0.1):
            said.append(f"{model}, gamma {level:g}: {ratio_of(found.loc[(level, 'loss')])}")
    return said


def ratio_of(row: Mapping[str, float] | pd.Series, digits: int = 3) -> str:
    """A ratio of an ablation's table with its interval."""
    value, low, high = (f"{row[name]:.{digits}f}" for name in ("ratio", "low", "high"))
    return f"{value} ({low} to {high})"


def radius_pairs() -> list[str]:
    """The effect of a radius where there are few pairs and many, with and without network times."""
    table = pd.read_csv(RESULTS / "radius_pairs/report/interactions.csv")
    fresh = table[(table["factor"] == "gamma") & (table["score"] == "loss")]
    return [
        f"gamma {float(row['level']):g}, {row['other']} {float(row['other_level']):g}: "
        f"{ratio_of(row)}"
        for row in fresh.to_dict("records")
    ]


def pairs_alone() -> list[str]:
    """The effects of the largest radius, of pairs and of tied network times over all columns."""
    found = pd.read_csv(RESULTS / "radius_pairs/report/ablation.csv")
    found = found.set_index(["factor", "level", "score"])
    told = [("gamma", 0.1, "loss"), ("gamma", 0.1, "fid"), ("pairs.train", 400.0, "loss")]
    told += [("pairs.train", 25.0, "loss"), ("offset_window", 0.0, "loss")]
    return [ratio_of(found.loc[one], 2) for one in told]


def stress() -> list[str]:
    table = pd.read_csv(RESULTS / "stress/stress.csv")
    cells = pd.read_csv(RESULTS / "stress/summary.csv")
    learned = table[table["kind"] == "learned"]
    unstable = int(learned["signs"].fillna("").str.contains("unstable").sum())
    lost = cells[cells["recall_grid"] < 1]
    said = [
        f"{int((learned['recall'] < 1).sum())} of {len(learned)} learned schedules miss a mode",
        f"the best hand-made grid misses modes in {len(lost)} of {len(cells)} cells",
        f"{unstable} of {len(learned)} runs ended unstable",
    ]
    for row in lost.to_dict("records"):
        said.append(f"{row['model']} at {row['nfe']}: {row['recall_grid']:.0%} of the modes")
    for row in cells[cells["model"].str.startswith("t-")].to_dict("records"):
        said.append(f"{row['model']} at {row['nfe']}: {three(row, 'tail_99')}")
    for row in cells[cells["model"].str.startswith("unequal")].to_dict("records"):
        said.append(f"{row['model']} at {row['nfe']}: {three(row, 'shift')}")
    return said


def three(row: dict, name: str) -> str:
    """A learned score with its interval, the best hand-made grid's and the teacher's."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return (
        f"learned {row[name]:.2f} ({low:.2f} to {high:.2f}), grid {row[name + '_grid']:.2f}, "
        f"teacher {row[name + '_teacher']:.2f}"
    )


def convergence() -> list[str]:
    table = pd.read_csv(RESULTS / "convergence_1d/summary.csv")
    said = []
    for row in table.to_dict("records"):
        said.append(
            f"{row['solver']} in {row['seeds_within_1_percent']} of {row['seeds']} seeds, "
            f"{row['starts_within_1_percent']:.0%} of the starts ({row['starts_low']:.0%} to "
            f"{row['starts_high']:.0%})"
        )
    both = table["two_starts_within_1_percent"].sum()
    said.append(f"log_snr and karras alone find it in {both} of {table['seeds'].sum()} cases")
    members = pd.read_csv(RESULTS / "convergence_1d/members.csv")
    alone = members[(members["start"] == "log_snr") & (members["ratio"] < 1.01)]
    counts = alone["solver"].value_counts()
    said.append(", ".join(f"{name} {counts.get(name, 0)}" for name in table["solver"]))
    return said


def spread(logs: pd.Series) -> str:
    """The geometric mean of a ratio and its interval, from logs by seed."""
    found = interval_over_sets(logs.groupby("seed").mean().to_numpy())
    return "{:.2f} ({:.2f} to {:.2f})".format(*np.exp([found.value, found.low, found.high]))


TRANSFERS = (
    ("solver", "digits", 6, "ddim", "ipndm-3"), ("solver", "digits", 6, "dpmpp-3", "unipc-3"),
    ("nfe", "digits", 8, "4", "8"), ("nfe", "digits", 6, "8", "6"),
    ("model", "both", 4, "digits", "fashion"), ("model", "both", 4, "fashion", "digits"),
    ("guidance", "digits", 6, "5", "2"), ("guidance", "digits", 6, "2", "5"),
    ("guidance", "digits", 4, "1", "5"), ("guidance", "fashion", 4, "5", "1"),
    ("guidance", "fashion", 4, "1", "5"), ("guidance", "fashion", 6, "2", "5"),
)  # fmt: skip
"""Entries of the matrices that are told: matrix, model, NFE, learned at, scored at."""


def transfer() -> list[str]:
    """What a schedule loses where it was not learned, and what it is worth there."""
    table = pd.read_csv(RESULTS / "transfer/transfer.csv").set_index("seed")
    away = table[(table["learned"] != table["scored"]) & (table["matrix"] != "pairs")]
    said = []
    for (matrix, model), rows in away.groupby(["matrix", "model"], sort=False):
        where = matrix if model == "both" or matrix != "guidance" else f"{matrix}, {model}"
        said.append(f"{where}: {spread(np.log(rows['own']))}, gain {spread(np.log(rows['gain']))}")
    known = pd.read_csv(RESULTS / "transfer/summary.csv", dtype={"learned": str, "scored": str})
    pairs = known[known["matrix"] == "pairs"].iloc[0]
    said.append(f"pairs: {pairs['own']:.2f} ({pairs['own_low']:.2f} to {pairs['own_high']:.2f})")
    known = known.set_index(["matrix", "model", "nfe", "learned", "scored"]).sort_index()
    for place in TRANSFERS:
        row = known.loc[place]
        said.append(
            f"{place[3]} to {place[4]} at {place[2]}: {row['own']:.3g} "
            f"({row['own_low']:.3g} to {row['own_high']:.3g})"
        )
    return said


def guidance() -> list[str]:
    """Gains on fresh samples of schedules learned for a scale, at the smallest and the largest."""
    frame = load_results(str(RESULTS / "guidance"))
    best = frame[frame["best"] & (frame["kind"] == "learned")]
    said = []
    for (base, nfe), rows in best.groupby([best["model"].str.partition("-")[0], "nfe"]):
        ends = rows.sort_values("guidance").iloc[[0, -1]].to_dict("records")
        gains = (
            f"{row['eval_gain']:.3g} ({row['eval_gain_low']:.3g} to {row['eval_gain_high']:.3g}) "
            f"at scale {row['guidance']:g}"
            for row in ends
        )
        said.append(f"{base} at {nfe}: {', '.join(gains)}")
    return said


def distances() -> list[str]:
    """Scores of schedules learned in other distances over those of l2."""
    table = pd.read_csv(RESULTS / "distances/report/ablation.csv")
    table = table[table["factor"] == "distance"]
    names = {"loss": "l2 loss", "fid": "Fréchet distance"}
    return [
        f"{row['model']}, {row['level']}: {names[row['score']]} {ratio_of(row, 2)}"
        for row in table[table["score"].isin(list(names))].to_dict("records")
    ]


JUDGES = (
    "loss", "metric.distance.l1", "metric.distance.feature", "metric.distance.efficientnet-lite0",
    "metric.distance.st-lpips-alex", "fid",
)  # fmt: skip


def judged() -> list[str]:
    """A line of the matrix per distance that was learned with: each judge's score over l2's."""
    table = pd.read_csv(RESULTS / "distances/report/ablation.csv")
    table = table[table["factor"] == "distance"].set_index(["model", "level", "score"])
    lines = []
    for model, level in dict.fromkeys((key[0], key[1]) for key in table.index):
        cells = [ratio_of(table.loc[(model, level, judge)], 2) for judge in JUDGES]
        lines.append(f"| {model} | {level} | {' | '.join(cells)} |")
    return lines


def correlations() -> list[str]:
    """A line of a table per score: rank correlations with the loss, in the way of its ranking."""
    table = pd.read_csv(RESULTS / "metrics/summary.csv")
    said = []
    for (ranked, score), rows in table.groupby(["ranked", "score"], sort=False):
        known = rows.set_index(["group", "model"])
        cells = []
        for group in ("all", "learned"):
            for model in ("digits", "fashion"):
                row = known.loc[(group, model)]
                cells.append(f"{row['correlation']:.2f} ({row['low']:.2f} to {row['high']:.2f})")
        said.append(f"{ranked} | {score.removeprefix('metric.')} | {' | '.join(cells)}")
    return said


def frechet_correlations() -> list[str]:
    """Of the rank by loss with that by Fréchet distance, over all and over learned schedules."""
    _, _, *cells = correlations()[0].split(" | ")
    return [f"{a} on digits, {b} on fashion" for a, b in (cells[:2], cells[2:])]


def flow() -> list[str]:
    """Gains on fresh samples of flow matching and of EDM's noise on the same distributions."""
    frame = load_results(str(RESULTS / "flow_matching"))
    frame = frame[frame["kind"] == "learned"]
    best = frame[frame["trial"].isin(frame[frame["best"]]["trial"])].set_index("seed")
    return [
        f"{model}: {spread(np.log(rows['eval_gain'].astype(float)))}"
        for model, rows in best.groupby("model", sort=False)
    ]


def consistency() -> list[str]:
    """A line of the table per model and NFE: losses of one evaluation, the best grid, learned."""
    table = pd.read_csv(RESULTS / "flow_matching/consistency.csv")
    lines = []
    for (model, nfe), rows in table[table["nfe"] > 1].groupby(["model", "nfe"]):
        once = table[(table["model"] == model) & (table["nfe"] == 1)]["loss"].min()
        fresh = rows["way"].str.endswith("fresh noise")
        grids = rows[rows["seed"].isna() & ~fresh].sort_values("loss")
        best = f"{grids['loss'].iloc[0]:.3g} ({grids['way'].iloc[0]})"
        cells = [f"{once:.3g}", best, f"{rows[fresh]['loss'].min():.3g}"]
        for way in ("learned", "learned, coefficients"):
            own = rows[rows["way"] == way].set_index("seed")["loss"]
            found = interval_over_sets(np.log(own).to_numpy())
            cells.append("{:.3g} ({:.3g} to {:.3g})".format(*np.exp(found[:3])))
        lines.append(f"| {model} | {nfe} | {' | '.join(cells)} |")
    return lines


def consistency_in_short() -> list[str]:
    """Gains of learned times and coefficients at 4 evaluations over the best without learning."""
    table = pd.read_csv(RESULTS / "flow_matching/consistency.csv")
    said = []
    for model, rows in table[table["nfe"].isin([1, 4])].groupby("model"):
        fresh, own = (rows["way"].str.endswith(end) for end in ("fresh noise", ", coefficients"))
        best = rows[rows["seed"].isna() & ~fresh]["loss"].min()
        gains = np.log(best / rows[own].set_index("seed")["loss"])
        said.append(f"{model}: {spread(gains)}")
    return said


WAYS = ("method", "procedure", "coefficients", "start_time")
"""Columns that tell the rows of the benchmark apart."""


def ways_of_benchmark(folder: str, model: str | None = None) -> pd.DataFrame:
    """The rows of a benchmark, or of one of its models, each with its way as `joined(WAYS)`."""
    results = only(load_results(str(RESULTS / folder)), [f"model={model}"] if model else [])
    return chosen(results, WAYS, ["nfe"], "eval_loss", "all")


def benchmark(folder: str = "benchmark", model: str | None = None) -> list[str]:
    """A line of the table per way, best first: rank, loss by NFE, loss over the default's, …

    Without Fréchet distances where none were measured.
    """
    rows = ways_of_benchmark(folder, model)
    named = rows[joined(WAYS)]
    measured = ["eval_loss", "fid", "network_evals", "seconds"]
    logs = np.log(rows[measured].astype(float)).assign(
        way=named, cell=rows["cell"], seed=rows["seed"], nfe=rows["nfe"]
    )
    base = logs[named == "learned, default"].set_index(["cell", "seed"])["eval_loss"]
    found = differences(rows, joined(WAYS), "eval_loss")
    lines = []
    for i in np.argsort(found.ranks, kind="stable"):
        mine = logs[logs["way"] == found.names[i]]
        learned = mine["seed"].notna().all()
        away = (base * -1).add(
            mine.set_index(["cell", "seed"] if learned else ["cell"])["eval_loss"]
        )
        losses = [f"{np.exp(value):.2g}" for value in mine.groupby("nfe")["eval_loss"].mean()]
        frechet, evals, seconds = (np.exp(mine[name].mean()) for name in measured[1:])
        ends = [] if np.isnan(frechet) else [f"{frechet:.3g}"]
        ends += [f"{evals / 1000:.2g}", f"{seconds:.2g}" if learned else "–"]
        over = "1" if found.names[i] == "learned, default" else spread(away)
        cells = [found.names[i].removeprefix("learned, "), f"{found.ranks[i]:.1f}", *losses, over]
        lines.append(f"| {' | '.join([*cells, *ends])} |")
    return lines


def benchmark_against_grids(folder: str = "benchmark", model: str | None = None) -> list[str]:
    """In how many cells a way of learning is nearer to the teacher than every grid, by how much."""
    rows = ways_of_benchmark(folder, model)
    logs = np.log(rows["eval_loss"].astype(float)).groupby([rows["cell"], rows[joined(WAYS)]])
    wide = logs.mean().unstack()
    ways = [name for name in wide if str(name).startswith("learned")]
    best = wide.drop(columns=ways).min(axis=1)
    return [
        f"{str(way).removeprefix('learned, ')} in {int((wide[way] < best).sum())} of {len(wide)} "
        f"cells, by {np.exp((best - wide[way]).mean()):.2f}"
        for way in ways
    ]


def benchmark_in_short(folder: str = "benchmark", model: str | None = None) -> list[str]:
    """The loss of every way of learning, and of the best grid, over the default's."""
    lines = [line.strip("| ").split(" | ") for line in benchmark(folder, model)]
    ways = ("default", "curve", "paper")
    learned = [line for line in lines if line[0].startswith(ways) and line[0] != "default"]
    grid = next(line for line in lines if not line[0].startswith(ways))
    return [f"{line[0]}: {line[7]}" for line in [*learned, grid]]


if __name__ == "__main__":
    for part in (
        theory, radius, radius_pairs, stress, convergence, transfer, guidance, distances,
        correlations, flow, consistency, benchmark,
    ):  # fmt: skip
        try:
            print(part.__name__, *part(), sep="\n  ")
        except Exception as error:  # noqa: BLE001, some tables may not be there yet
            print(part.__name__, repr(error))
