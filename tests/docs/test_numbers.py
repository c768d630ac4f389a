"""Every number in the prose of README and benchmarks is that of a committed table.

`CLAIMS` are sentences with places for numbers, and where the numbers come from. A number on these
pages that belongs to no claim, to no table that is compared here, and to no setting is a fault: a
page cannot say more than was measured.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pages import ROOT, prose

from ld3_dist.core.learning.procedure import make_config
from ld3_dist.experiment import load_experiment
from ld3_dist.report import read_sweep_tables, summary_table

SHOWN = "fashion"
"""The folder of results that README's picture and table are from."""

README, BENCHMARKS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
METHODS = ("hand-made", "paper", "default", "coefficients")
Numbers = dict[str, Any]


@cache
def benchmark(name: str) -> Any:
    return json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text())


def geometric(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


CELLS = [(s, n) for n in (4, 6, 8, 10) for s in ("unipc-3", "ipndm-3", "dpmpp-3", "ddim")]
"""Cells of the table of learning."""
VARIANT_OF = {
    "paper": "published",
    "default": "default",
    "coefficients": "default, coefficients, a later start",
}
"""Columns of that table, and the variants of the script of pairs."""


def mean_loss(method: str, solver: str, nfe: int) -> float:
    """The mean on fresh pairs; of what is learned, in the geometric mean of three seeds."""
    if method == "hand-made":
        cells = benchmark("learning")["cells"]
        (grids,) = (c["grids"] for c in cells if c["cell"] == f"{solver}/{nfe}" and c["seed"] == 0)
        return min(loss["mean"] for loss in grids.values())
    at = VARIANT_OF[method], f"digits/{solver}/{nfe}"
    runs = [r for r in benchmark("generalisation")["runs"] if (r["variant"], r["cell"]) == at]
    assert sorted(run["seed"] for run in runs) == [0, 1, 2]
    return geometric([run["mean"] for run in runs])


@cache
def summary() -> pd.DataFrame:
    tables = read_sweep_tables(str(ROOT / "results" / SHOWN))
    table = summary_table(tables.results, tables.evaluations)
    return table[table["distance"] == "l2"]


def shown_cell() -> Numbers:
    """The cell of the README's picture."""
    row = summary().query("solver == 'ddim' and nfe == 4").iloc[0]
    e = load_experiment(ROOT / "experiments" / f"{SHOWN}.yaml")
    return {
        "teacher": e.teacher.nfe, "nfe": int(row["nfe"]), "samples": e.evaluate.samples,
        "gain": row["eval_gain"], "low": row["eval_gain_low"], "high": row["eval_gain_high"],
    }  # fmt: skip


def pipeline_cost() -> Numbers:
    """Samples times evaluations of the README's command: teaching, and learning from two starts."""
    config, pairs, nfe, starts = make_config(), 25, 6, 2
    whole = 2 * pairs * 20 + starts * config.samples(pairs, pairs) * nfe
    return {"samples": round(whole, -4), "nfe": nfe}


def held_out() -> Numbers:
    """The held-out losses of what was selected over those of the published procedure's."""
    runs = benchmark("generalisation")["runs"]
    at = {(run["variant"], run["cell"], run["seed"]): run["valid"] for run in runs}
    over = lambda own: geometric([
        at[VARIANT_OF[own], cell, k] / at["published", cell, k]
        for cell in (f"digits/{s}/{n}" for s, n in CELLS) for k in range(3)
    ])  # fmt: skip
    return {"default": over("default"), "both": over("coefficients")}


def speed() -> Numbers:
    found = benchmark("learning")["summary"]
    return {
        short: found[name] | {"over": found[name]["fresh loss over paper's"]}
        for short, name in (("two", "default"), ("one", "one start"),
                            ("few", "one start, 50 pairs"))
    }  # fmt: skip


def starts() -> Numbers:
    def learned(kind: str, name: str) -> float:
        return benchmark("starts")[kind]["relative loss"][name]["learned"]

    six = "log_snr + karras + dmn + gits + optimal-steps + previous"
    return {
        "alone": learned("mixtures", "log_snr"),
        "optimal": learned("mixtures", "log_snr + optimal-steps"),
        "neighbour": learned("mixtures", "log_snr + previous"),
        "six": learned("mixtures", six),
        "d_alone": learned("digits", "log_snr"),
        "d_optimal": learned("digits", "log_snr + optimal-steps"),
        "d_neighbour": learned("digits", "log_snr + previous"),
        "mixtures": benchmark("starts")["mixtures"]["relative loss"]["log_snr"]["cells"],
        "digits": benchmark("starts")["digits"]["relative loss"]["log_snr"]["cells"],
    }  # fmt: skip


def gpu() -> Numbers:
    found = benchmark("gpu")
    rows = {
        (r["members"], r["nfe"], r["activations"]): r for r in found["sections"]["packing"]["rows"]
    }
    most = rows[8, 4, "kept"]
    parts = found["sections"]["digits"]
    return {
        "parameters": found["sections"]["packing"]["parameters"] / 1e6,
        "packed": most["visits_per_s"], "alone": rows[1, 4, "kept"]["visits_per_s"],
        "share": 100 * most["of_bf16_peak"], "kept": most["peak_gib"],
        "made": rows[8, 4, "recomputed"]["peak_gib"], "kept_10": rows[8, 10, "kept"]["peak_gib"],
        "made_10": rows[8, 10, "recomputed"]["peak_gib"], "minutes": found["minutes"],
        "batch": found["sections"]["packing"]["batch"],
        "torch": found["machine"]["torch"].rpartition(".")[0],
        "g": parts["gpu"]["held_out"], "c": parts["cpu"]["held_out"],
    }  # fmt: skip


def compiled() -> Numbers:
    """Seconds of both models, plain and compiled; what compiling costs, with a cache or without."""
    rows = benchmark("compiled")["rows"]
    assert [row["model"] for row in rows] == ["fashion", "hsc64"]
    first = lambda row, way: row[way]["learn_first_s"] - row["plain"]["learn_first_s"]
    ways = ("plain", "compiled_from_cache")
    return {
        "nfe": 6, "pairs": 25, "samples": 300,
        "learn": [[row[way]["learn_later_s"] for way in ways] for row in rows],
        "sample": [[row[way]["sample_later_s"] for way in ways] for row in rows],
        "cold": [first(row, "compiled") for row in rows],
        "kept": [first(row, "compiled_from_cache") for row in rows],
    }  # fmt: skip


def gpu_h200() -> Numbers:
    found = benchmark("gpu_h200")["sections"]
    types = {
        r["dtype"]: r for r in found["dtypes"]["rows"]
        if r["members"] == 4 and not (r["channels_last"] or r["cudnn_benchmark"])
    }  # fmt: skip
    compiled = {
        way: {r["what"]: r.get("s") for r in found["compile"][way]["rows"]}
        for way in ("whole", "blocks")
    }
    return {
        "members": 4, "nfe": found["dtypes"]["nfe"],
        "ms": [1000 * types[name]["s"] for name in ("float32", "TF32", "bfloat16")],
        "error": [types[name]["error"] for name in ("float32", "TF32", "bfloat16")],
        "first": {way: steps["first"] for way, steps in compiled.items()},
        "faster": {way: steps["eager"] / steps["later"] for way, steps in compiled.items()},
        "tf32": found["digits"]["tf32"]["fresh"], "cpu": found["digits"]["cpu"]["fresh"],
    }  # fmt: skip


def sweep_on_gpu() -> Numbers:
    found = benchmark("sweep_on_gpu")
    return found | {
        "cpu": found["seconds_of_trials"][0], "gpu": found["seconds_of_trials"][1],
        "gb": found["peak_memory_bytes"] / 1e9, "ratio": found["loss_ratio"],
    }  # fmt: skip


def growth() -> Numbers:
    found = benchmark("cluster")["growth"]
    after, before, real = found["hollow_after"], found["hollow_before"], found["after"]
    done, wall = before["curve"]["done"], before["curve"]["wall_s"]
    pace = [(b - a) / (v - u) for a, b, u, v in zip(done, done[1:], wall, wall[1:], strict=False)]
    return {
        "trials": after["trials"], "rate": after["rate"], "ms": after["driver_cpu_ms"],
        "kb": after["memory_kb"], "slow": before["rate"], "fast": max(pace),
        "was_ms": before["driver_cpu_ms"], "was_kb": before["memory_kb"],
        "real": real["trials"], "real_rate": real["rate"],
        "real_ms": real["driver_cpu_ms"], "real_kb": real["memory_kb"],
    }  # fmt: skip


def tables() -> Numbers:
    found = benchmark("tables")
    loads = sorted((found["load_average_after"], found["load_average_before"]))
    return {
        "rows": found["load"]["rows"], "files": found["files"], "low": loads[0], "high": loads[1],
    }  # fmt: skip


def over_single(solver: str, name: str, nfe: int, kind: str) -> float:
    """A curve's loss on fresh samples over that of the schedule learned for the NFE alone."""
    cells = benchmark("curve")["cells"]
    return cells[f"{name}-{solver}"][str(nfe)][kind] / cells[f"single-{solver}-{nfe}"][kind]


def curve() -> Numbers:
    found = benchmark("curve")["curve over single"]
    worst = lambda nfes, name: max(
        over_single(solver, name, nfe, "mean") for solver in CURVES for nfe in nfes
    )
    *_, after, _ = sorted(over_single(s, "all", n, "mean") for s in CURVES for n in range(4, 11))
    return {
        "times": [found[f"{solver}, all"]["time in single schedules"] for solver in CURVES],
        "next": after,
        "worst": worst(range(4, 11), "all"), "unseen": worst((5, 7, 9), "even"),
        "median": max(over_single(s, "all", n, "median") for s in CURVES for n in range(4, 11)),
    }  # fmt: skip


def optimum() -> Numbers:
    rows = benchmark("global_optimum")["default"]
    hard = [row for row in rows if min(row["restarts"]) > 1e-6]
    best = {name: [min(row[name]) for row in hard] for name in ("default", "160 epochs")}
    best["starts"] = [min(row["four starts"]) for row in hard]
    best["present"] = [min(row["present default"]) for row in hard]
    best["present_longer"] = [min(row["present default, 80 epochs"]) for row in hard]
    near = {name: sum(ratio < 1.1 for ratio in ratios) for name, ratios in best.items()}
    worst = {name: max(ratios) for name, ratios in best.items()}
    exact = max(cell["ratio"] for cell in benchmark("global_optimum")["cells"]) - 1
    return {
        "cells": len(rows), "solved": len(rows) - len(hard), "hard": len(hard),
        "median": statistics.median(best["default"]), "near": near, "worst": worst,
        "present_median": statistics.median(best["present"]),
        "longer": near["160 epochs"], "longer_worst": worst["160 epochs"], "exact": 100 * exact,
    }  # fmt: skip


GS = ("gs", "ours", *(f"ours, {how}" for how in (
    "50 pairs, batches of 5", "800 pairs, batches of 5", "800 pairs")))  # fmt: skip
"""Columns of the table of GS."""


def gs_cells() -> dict[str, dict[str, Any]]:
    """The cells by NFE, `gs` being the variant with the smallest mean."""
    cells = benchmark("generalized_solver")["cells"]
    ends = lambda cell: [found for name, found in cell.items() if name.startswith("gs")]
    mean = lambda found: found["fresh"]["mean"]
    return {nfe: cell | {"gs": min(ends(cell), key=mean)} for nfe, cell in cells.items()}


def against_gs() -> Numbers:
    cells = gs_cells()
    over = lambda name, kind: [
        cell[name]["fresh"][kind] / cell["gs"]["fresh"][kind] for cell in cells.values()
    ]
    at = lambda what: " and ".join(nfe for nfe, cell in cells.items() if what(cell["gs"]))
    found: Numbers = {
        "fast": at(lambda best: best["rate"] == 1e-2),
        "slow": at(lambda best: best["rate"] == 3e-3),
        "falling": at(lambda best: best["still falling"]),
    }
    for short, name in (("own", "ours"), ("few", "ours, 50 pairs, batches of 5"),
                        ("many", "ours, 800 pairs, batches of 5")):  # fmt: skip
        found[short] = [geometric(over(name, kind)) for kind in ("mean", "median")]
        shares = [cell[name]["seconds"] / cell["gs"]["seconds"] for cell in cells.values()]
        found |= {f"{short}_worst": max(over(name, "mean")),
                  f"{short}_least": min(shares), f"{short}_most": max(shares)}  # fmt: skip
    return found


def generalisation() -> dict[tuple[str, str], Any]:
    """Its runs of the first seed by variant and cell."""
    runs = benchmark("generalisation")["runs"]
    return {(run["variant"], run["cell"]): run for run in runs if run["seed"] == 0}


def over_base(own: str, base: str, cells: Iterable[str]) -> dict[str, list[float]]:
    """One variant over another in each cell, geometric means of all seeds that both have."""
    runs = {(run["variant"], run["cell"], run["seed"]): run
            for run in benchmark("generalisation")["runs"]}  # fmt: skip
    both = {cell: [k for k in range(3) if {(own, cell, k), (base, cell, k)} <= runs.keys()]
            for cell in cells}  # fmt: skip
    assert len({tuple(seeds) for seeds in both.values()}) == 1
    return {
        kind: [
            geometric([runs[own, cell, k][kind] / runs[base, cell, k][kind] for k in seeds])
            for cell, seeds in both.items()
        ]
        for kind in ("mean", "median", "evaluations")
    }


def compared_over_seeds(own: str, base: str) -> dict[str, Any]:
    """The ratio of means that the script has found over cells and seeds, with its interval."""
    found = benchmark("generalisation")["comparisons"]
    (row,) = [row for row in found if (row["variant"], row["over"]) == (own, base)]
    return row


def at_lower_noise() -> Numbers:
    """The loss with a learned start over that of the former default, by NFE."""
    runs = generalisation()
    cells = {cell for name, cell in runs if name == "start time"}
    over = lambda nfe, kind: [
        runs["start time", cell][kind] / runs["former default", cell][kind]
        for cell in sorted(cells) if cell.endswith(f"/{nfe}")
    ]  # fmt: skip
    return {
        "three": geometric(over(3, "mean")), "four": geometric(over(4, "mean")),
        "medians": [geometric(over(nfe, "median")) for nfe in (3, 4)],
        "least": min(over(3, "mean") + over(4, "mean")),
        "most": max(over(3, "mean") + over(4, "mean")),
        "six": [min(over(6, "mean")), max(over(6, "mean"))],
        "chosen": max(
            runs["start time", cell]["mean"] / runs["former default", cell]["mean"]
            for cell in cells
            if runs["start time", cell]["valid"] < runs["former default", cell]["valid"]
        ),
        "eight": [min(over(8, "mean")), max(over(8, "mean"))],
        "eight_medians": [min(over(8, "median")), max(over(8, "median"))],
    }  # fmt: skip


PAIRS = {
    "former default": "former default",
    "`default`": "default",
    "`paper`": "published",
    "200 pairs, 10 epochs": "200 pairs, 10 epochs",
    "the same, 200 held out, averaged parameters":
        "200 pairs, 10 epochs, 200 held out, average",
    "the same, large losses tamed": "200 pairs, 10 epochs, 200 held out, average, robust 4",
}  # fmt: skip
"""Rows of the table of pairs, and the variants of the script."""


def of_pairs(variant: str) -> list[tuple[Any, Any]]:
    """Runs of a variant, and those of the former default of the same cells."""
    runs = generalisation()
    tried = sorted(cell for name, cell in runs if name == "200 pairs, 10 epochs")
    return [(runs[variant, cell], runs["former default", cell]) for cell in tried]


def present() -> Numbers:
    """The default over the former one and over the published procedure, in sixteen cells."""
    runs = generalisation()
    hardest = "digits/unipc-3-bh1/5"
    cells = sorted(cell for name, cell in runs if name == "published" and cell != hardest)
    assert len(cells) == 16
    tried = lambda name, of: sorted(cell for n, cell in runs if n == name and cell.startswith(of))
    compared = {
        "former": over_base("default", "former default", cells),
        "paper": over_base("default", "published", cells),
        "hardest": over_base("default", "published", [hardest]),
        "few": over_base("default, 50 pairs", "former default", cells),
        "more": over_base("default, 340 pairs", "default", tried("default, 340 pairs", "digits")),
        "most": over_base(seldom := "default, 750 pairs, 8 epochs", "default",
                          tried(seldom, "digits")),
        "batches": over_base("batches of 5, 20 epochs", "former default",
                             tried("batches of 5, 20 epochs", "digits")),
        "fashion": over_base("default, 50 pairs", "former default",
                             tried("former default", "fashion")),
    }  # fmt: skip
    begun = tried("default, coefficients", "digits")
    assert len(begun) == 8
    later = VARIANT_OF["coefficients"]
    compared |= {
        "begun": over_base(later, "default, coefficients", begun),
        "with": over_base(later, "default", cells),
        "with_paper": over_base(later, "published", cells),
    }
    ran = [run for run in benchmark("generalisation")["runs"]
           if run["variant"] == "default" and run["cell"] in cells]  # fmt: skip
    found: Numbers = {
        "later": sum(run["start"].startswith("later:") for run in ran), "runs": len(ran),
        "paper_interval": (known := compared_over_seeds("default", "published")),
        "with_interval": compared_over_seeds(later, "default"),
        "with_paper_interval": compared_over_seeds(later, "published"),
    }  # fmt: skip
    assert (known["cells"], known["seeds"]) == (16, [0, 1, 2])
    assert math.isclose(known["value"], geometric(compared["paper"]["mean"]), rel_tol=1e-4)
    for name, ratios in compared.items():
        found[name] = {kind: geometric(values) for kind, values in ratios.items()}
        found[f"{name}_worst"] = [max(ratios[kind]) for kind in ("mean", "median")]
    return found


CURVES = {"unipc-3": "UniPC-3", "dpmpp-3": "DPM++(3M)"}
"""Solvers of the curves, and what the page calls them."""

CLAIMS: list[tuple[Path, str, Callable[[], Numbers]]] = [
    (README, "teacher with {teacher} evaluations, the best hand-made grid with {nfe}, a learned "
     "schedule with {nfe}", shown_cell),
    (README, "On {samples} fresh samples the learned one is {gain:.1f} times nearer to the "
     "teacher, 95 % interval {low:.1f} to {high:.1f}", shown_cell),
    (README, "evaluate it for some {samples:,} samples", pipeline_cost),
    (README, "the activations of {nfe} evaluations", pipeline_cost),
    (README, "the default ends at {paper[mean]:.2f} ({paper_interval[low]:.2f} to "
     "{paper_interval[high]:.2f}) of the published procedure's loss on fresh samples, for "
     "{paper[evaluations]:.2f} of its evaluations", present),
    (README, "with learned coefficients at {with_paper[mean]:.2f} "
     "({with_paper_interval[low]:.2f} to {with_paper_interval[high]:.2f})", present),
    (README, "From one start it takes a {one[times faster]:.0f}th of that procedure's time "
     "to be as good on held-out pairs, a {one[least]:.0f}th at worst.", speed),
    (BENCHMARKS, "from 100, for {paper[evaluations]:.2f} of the evaluations", present),
    (BENCHMARKS, "`default` / `paper` {paper[mean]:.2f} ({paper_interval[low]:.2f} to "
     "{paper_interval[high]:.2f}; worst cell {paper_worst[0]:.2f}), `coefficients` / `default` "
     "{with[mean]:.2f} ({with_interval[low]:.2f} to {with_interval[high]:.2f}; worst "
     "{with_worst[0]:.2f}), `coefficients` / `paper` {with_paper[mean]:.2f} "
     "({with_paper_interval[low]:.2f} to {with_paper_interval[high]:.2f})", present),
    (BENCHMARKS, "The medians have {paper[median]:.2f} (worst {paper_worst[1]:.2f}), "
     "{with[median]:.2f} (worst {with_worst[1]:.2f}) and {with_paper[median]:.2f}", present),
    (BENCHMARKS, "`default` / `paper` looks like {default:.2f} and `coefficients` / `paper` like "
     "{both:.2f}", held_out),
    (BENCHMARKS, "`default` needs 1/{two[times faster]:.0f} of its time (geometric mean; "
     "1/{two[least]:.0f} in the worst cell), one start, `later:log_snr`, "
     "1/{one[times faster]:.0f} (1/{one[least]:.0f}), and one start on the 50 pairs of `paper` "
     "1/{few[times faster]:.0f} (1/{few[least]:.0f})", speed),
    (BENCHMARKS, "At these moments the fresh loss is {two[over][mean]:.2f}, {one[over][mean]:.2f} "
     "and {few[over][mean]:.2f} of that of `paper` in the mean, {two[over][median]:.2f}, "
     "{one[over][median]:.2f} and {few[over][median]:.2f} in the median", speed),
    (BENCHMARKS, "as long as {times[0]:.1f} single schedules with UniPC-3 and {times[1]:.1f} with "
     "DPM++(3M). The curve's loss is at most {worst:.2f} times that of `default` in the mean, with "
     "UniPC-3 at 10, and at most {next:.2f} times elsewhere", curve),
    (BENCHMARKS, "there it is at most {unseen:.2f} times. The worst median is that of UniPC-3 at "
     "10, {median:.2f} times", curve),
    (BENCHMARKS, "{three:.2f} at 3 evaluations and {four:.2f} at 4 (geometric means; single cells "
     "{least:.2f} to {most:.2f}), medians {medians[0]:.2f} and {medians[1]:.2f}", at_lower_noise),
    (BENCHMARKS, "the means lie between {eight[0]:.2f} and {eight[1]:.2f} and the medians between "
     "{eight_medians[0]:.2f} and {eight_medians[1]:.2f}", at_lower_noise),
    (BENCHMARKS, "At 6 it is {six[0]:.2f} to {six[1]:.2f}", at_lower_noise),
    (BENCHMARKS, "it has {former[mean]:.2f} of the former one's mean loss and {former[median]:.2f} "
     "of its median (worst cells {former_worst[0]:.2f} and {former_worst[1]:.2f}), for "
     "{former[evaluations]:.2f} of its evaluations.", present),
    (BENCHMARKS, "once the hardest cell, it is {hardest[mean]:.2f} of the mean", present),
    (BENCHMARKS, "with 50 pairs it has {few[mean]:.2f} of the former default's mean and "
     "{few[median]:.2f} of its median, for {few[evaluations]:.2f} of its evaluations; on fashion "
     "(UniPC-3 at 4 and 6) {fashion[mean]:.2f}, {fashion[median]:.2f} and "
     "{fashion[evaluations]:.2f}", present),
    (BENCHMARKS, "have {batches[mean]:.2f} of the mean and {batches[median]:.2f} of the median in "
     "five cells", present),
    (BENCHMARKS, "340 pairs have {more[mean]:.2f} of the mean loss of the default's 100 and "
     "{more[median]:.2f} of its median in four cells and one seed, for "
     "{more[evaluations]:.1f} times the evaluations; 750 pairs in 8 epochs {most[mean]:.2f} and "
     "{most[median]:.2f} in two", present),
    (BENCHMARKS, "{begun[mean]:.2f} of the mean loss that starts at t_max have and "
     "{begun[median]:.2f} of the median (worst cells {begun_worst[0]:.2f} and "
     "{begun_worst[1]:.2f})", present),
    (BENCHMARKS, "which is chosen in {later} of the {runs} runs", present),
    (BENCHMARKS, "the mean is at most {chosen:.2f} times that of the former default",
     at_lower_noise),
    (BENCHMARKS, "rate 1e-2 at {fast} evaluations, 3e-3 at {slow}. At {falling} evaluations that "
     "was the last moment", against_gs),
    (BENCHMARKS, "{own[0]:.2f} and {own[1]:.2f} for the default (worst mean {own_worst:.2f}), in "
     "{own_least:.2f} to {own_most:.2f} of its time", against_gs),
    (BENCHMARKS, "{few[0]:.2f} and {few[1]:.2f} with 50 pairs (worst mean {few_worst:.2f}), in "
     "{few_least:.2f} to {few_most:.2f} of its time", against_gs),
    (BENCHMARKS, "{many[0]:.2f} and {many[1]:.2f} with 800 pairs (worst mean {many_worst:.2f}), in "
     "{many_least:.2f} to {many_most:.2f} of its time", against_gs),
    (BENCHMARKS, "decided this ({mixtures} cells", starts),
    (BENCHMARKS, "evaluations, {cells} cells. In {solved} of them the optimum is below 1e-6",
     optimum),
    (BENCHMARKS, "In the other {hard}, the loss of the former default is {median:.2f} times the "
     "optimum in the median, within 10 % of it in {near[default]}, and {worst[default]:.2f} times "
     "at worst. Four times the epochs bring {longer} of the {hard} within 10 %, and "
     "{longer_worst:.2f} times at worst", optimum),
    (BENCHMARKS, "and `dmn` as well {near[starts]}, and {worst[starts]:.2f} times", optimum),
    (BENCHMARKS, "within {exact:.5f} % of the optimum in", optimum),
    (BENCHMARKS, "ends at {present_median:.2f} times that optimum in the median, within 10 % of it "
     "or below in {near[present]}, and at {worst[present]:.2f} times at worst; four times the "
     "epochs bring {near[present_longer]}, and {worst[present_longer]:.2f} times", optimum),
    (BENCHMARKS, "{alone:.2f} from `log_snr` alone, {optimal:.2f} with `optimal-steps`, "
     "{neighbour:.2f} with a neighbour's solution, {six:.2f} from six starts", starts),
    (BENCHMARKS, "On `digits` ({digits} cells, measured at half of today's rate) starts hardly "
     "differ: {d_alone:.2f}, {d_optimal:.2f} and {d_neighbour:.2f}", starts),
    (BENCHMARKS, "with torch {torch}, a network of CIFAR-10's size (EDM, {parameters:.1f} M "
     "parameters, bfloat16) with random weights, and batches of {batch} samples per member", gpu),
    (BENCHMARKS, "pass {packed:.0f} samples a second forward and backward, one member alone "
     "{alone:.0f}; 8 members reach {share:.0f} % of the card's own rate", gpu),
    (BENCHMARKS, "of the 8 is {kept:.1f} GiB with activations kept and {made:.1f} GiB with "
     "activations recomputed; at 10 evaluations it is {kept_10:.1f} and {made_10:.1f} GiB", gpu),
    (BENCHMARKS, "of three seeds are {g[0]:.5f}, {g[1]:.5f} and {g[2]:.5f}, on the CPU {c[0]:.5f}, "
     "{c[1]:.5f} and {c[2]:.5f}", gpu),
    (BENCHMARKS, "The run had {minutes} minutes", gpu),
    (BENCHMARKS, "and compilation, with {members} members at {nfe} evaluations", gpu_h200),
    (BENCHMARKS, "takes {ms[0]:.0f} ms in float32, {ms[1]:.0f} ms in TF32 and {ms[2]:.0f} ms in "
     "bfloat16; the network's output is off by {error[0]:.0e}, {error[1]:.0e} and {error[2]:.0e}",
     gpu_h200),
    (BENCHMARKS, "Compiling the whole network took {first[whole]:.0f} s and made a step "
     "{faster[whole]:.2f} times faster; compiling every block took {first[blocks]:.0f} s and made "
     "it {faster[blocks]:.2f} times faster", gpu_h200),
    (BENCHMARKS, "fresh losses of three seeds are {tf32[0]:.5f}, {tf32[1]:.5f} and {tf32[2]:.5f}, "
     "on the CPU {cpu[0]:.5f}, {cpu[1]:.5f} and {cpu[2]:.5f}", gpu_h200),
    (BENCHMARKS, "Learning at {nfe} evaluations from {pairs} pairs took {learn[0][0]:.1f} s with "
     "`fashion` and {learn[0][1]:.1f} s with it compiled; {learn[1][0]:.1f} s and "
     "{learn[1][1]:.1f} s with", compiled),
    (BENCHMARKS, "{samples} samples took {sample[0][0]:.1f} s and {sample[0][1]:.1f} s, and "
     "{sample[1][0]:.1f} s and {sample[1][1]:.1f} s", compiled),
    (BENCHMARKS, "Compiling itself took {cold[0]:.0f} s and {cold[1]:.0f} s, and {kept[0]:.0f} s "
     "and {kept[1]:.0f} s more where a cache had it", compiled),
    (BENCHMARKS, "its {trials} trials took {gpu:.0f} s together", sweep_on_gpu),
    (BENCHMARKS, "that had other work too took {cpu:,.0f} s", sweep_on_gpu),
    (BENCHMARKS, "is {ratio[geometric_mean]:.3f} times that of the CPU in the geometric mean, "
     "{ratio[quantile_0.25]:.3f} to {ratio[quantile_0.75]:.3f} in the middle half of the trials, "
     "{ratio[quantile_0]:.2f} to {ratio[quantile_1]:.2f} in all", sweep_on_gpu),
    (BENCHMARKS, "No trial held more than {gb:.2f} GB", sweep_on_gpu),
    (BENCHMARKS, "{rows:,} rows in a folder whose {files:,} files", tables),
    (BENCHMARKS, "(a load of {low:.0f} to {high:.0f} on two cores)", tables),
    (BENCHMARKS, "with {trials:,} trials that do nothing: the driver takes {rate:.0f} trials a "
     "second, {ms:.2f} ms of its CPU and {kb:.0f} kB of its memory each", growth),
    (BENCHMARKS, "With {real:,} trials that learn, on the same cores, the driver took "
     "{real_rate:.0f} trials a second, {real_ms:.1f} ms of its CPU and {real_kb:.0f} kB of its "
     "memory each", growth),
    (BENCHMARKS, "it took {slow:.1f} to {fast:.1f} a second, {was_ms:.0f} ms and {was_kb:.0f} kB",
     growth),
]  # fmt: skip

SETTINGS = {
    README: ("4 to 10 steps", ">= 3.11", "95 % intervals", "95 % interval"),
    BENCHMARKS: (
        "a teacher with 20 evaluations", "50 pairs held out", "learns from 50 pairs",
        "both with seed 0", "with 95 % intervals", "2,000 fresh samples", "the 50 held-out pairs",
        "100 pairs to learn from",
        "a mean over 50 pairs", "lr 0.1 that decays to 0.02", "H100 80GB HBM3",
        "At 4 evaluations, 8 members", "more than 8 members", "8 members took less time than 4",
        "of 20 rows", "turns of 100 s", "1,000 workers",
        "1,000 GPUs", "At 5, 7 and 9 the second curve",
        "on the NFEs 4 to 10, another on 4, 6, 8 and 10 alone", "3 and 4 evaluations",
        "from 32 starts", "six solvers, 3 and 4", "from 1,400 pairs", "At 8 evaluations",
        "at the published rate 1e-3, at 3e-3 and at 1e-2", "at 6 and 10 evaluations from 50 pairs",
        "for 400 to 900 s each", "at 6 evaluations the default",
        "arXiv 2510.17699", "four solvers, seed 0", "outputs of DPM-Solver++(3M)", "DPM++(3M) with",
        "2,000 fresh samples",
        "visits 50 pairs in batches of 10 for 40 epochs and selects on 50",
        "in batches of 5 for 20 epochs", "one of its two starts",
        "on 100 pairs", "100 pairs, one of two starts", "with 50 and 800 pairs from",
        "batches of 10. Mean",
        "with 50 pairs it has", "DPM++(3M) and UniPC-3 at 4, 6, 8 and 10",
        "At 8 and 10 evaluations it", "UniPC-3 at 4 and 6", "of kind bh1 at 5",
    ),
}  # fmt: skip
"""Numbers that say what was done: settings and sizes, not results."""

TABLES = {
    README: ["| solver |", "| | |"],
    BENCHMARKS: [
        "| solver, NFE |", "| evaluations |", *(f"| {title}, NFE |" for title in CURVES.values()),
        "| NFE: GS",
        "| relative to the former default |",
        "| | mixtures |", "| | CPU |", "| 1,000 GPUs,",
    ],
}  # fmt: skip
"""Every table of these pages by the beginning of its heading; tests below compare them."""


def plain(page: Path) -> str:
    return " ".join(prose(page).split())


@pytest.mark.parametrize(
    ("page", "sentence", "numbers"), CLAIMS, ids=[sentence[:50] for _, sentence, _ in CLAIMS]
)
def test_a_sentence_says_what_was_measured(
    page: Path, sentence: str, numbers: Callable[[], Numbers]
) -> None:
    assert sentence.format(**numbers()) in plain(page), sentence.format(**numbers())


def uncovered(page: Path, text: str) -> list[str]:
    """Numbers of a page that nothing here accounts for."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("|")]
    rest = " ".join(" ".join(lines).split())
    for owner, sentence, numbers in CLAIMS:
        if owner == page:
            rest = rest.replace(sentence.format(**numbers()), " ")
    rest = re.sub(r"!\[[^\]]*\]\([^)]*\)", " ", rest)
    rest = re.sub(r"\]\([^)]*\)|`[^`]*`", " ", rest)
    for phrase in SETTINGS[page]:
        rest = rest.replace(phrase, " ")
    return re.findall(r"(?<![\w.-])\d[\d,.]*", rest)


@pytest.mark.parametrize("page", [README, BENCHMARKS], ids=lambda page: page.name)
def test_no_number_is_without_a_source(page: Path) -> None:
    left = uncovered(page, prose(page))
    assert not left, left
    for phrase in SETTINGS[page]:
        assert phrase in plain(page), f"no longer there: {phrase}"


def test_a_number_without_a_source_is_found() -> None:
    assert uncovered(README, prose(README) + "\nIt is 7.3 times faster.") == ["7.3"]


@pytest.mark.parametrize("page", [README, BENCHMARKS], ids=lambda page: page.name)
def test_every_table_is_compared(page: Path) -> None:
    heads = re.findall(r"(?:^|\n\n)(\|[^\n]*)\n\|[-| :]+\n", prose(page))
    assert len(heads) == len(TABLES[page])
    for head, known in zip(heads, TABLES[page], strict=True):
        assert head.startswith(known)


def rows(page: Path, head: str) -> list[list[str]]:
    """The rows of the table whose heading begins with `head`."""
    text = page.read_text(encoding="utf-8")
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_the_readme_is_measured() -> None:
    found = rows(README, "| solver |")
    assert {row[0] for row in found} == set(summary()["solver"])
    for solver, *texts in found:
        table = summary()
        cells_of = table[table["solver"] == solver].sort_values("nfe")
        assert cells_of["nfe"].tolist() == [4, 6, 8, 10]
        assert texts == [
            f"{row.eval_gain:.1f} ({row.eval_gain_low:.1f} to {row.eval_gain_high:.1f})"
            for row in cells_of.itertuples()
        ]


def test_the_means_of_the_benchmarks_are_measured() -> None:
    found = rows(BENCHMARKS, "| evaluations |")
    assert [int(row[0]) for row in found] == [4, 6, 8, 10]
    for nfe, *values in found:
        for method, value in zip(METHODS, values, strict=True):
            losses = [mean_loss(method, s, n) for s, n in CELLS if n == int(nfe)]
            assert value == f"{geometric(losses):.3g}"


def test_the_table_of_the_benchmarks_is_measured() -> None:
    found = rows(BENCHMARKS, "| solver, NFE |")
    assert [row[0] for row in found] == [f"{solver}, {nfe}" for solver, nfe in CELLS]
    for (solver, nfe), (_, *values) in zip(CELLS, found, strict=True):
        for method, value in zip(METHODS, values, strict=True):
            assert value == f"{mean_loss(method, solver, nfe):.3g}"


@pytest.mark.parametrize(("solver", "title"), CURVES.items())
def test_the_tables_of_the_curves_are_measured(solver: str, title: str) -> None:
    found = rows(BENCHMARKS, f"| {title}, NFE |")
    cells = benchmark("curve")["cells"]
    assert [row[0] for row in found] == [str(nfe) for nfe in range(4, 11)]
    for nfe, *values in found:
        expected = [f"{cells[f'single-{solver}-{nfe}']['mean']:.3g}"]
        for name in ("all", "even"):
            both = (over_single(solver, name, int(nfe), kind) for kind in ("mean", "median"))
            expected += [f"{ratio:.2f}" for ratio in both]
        assert values == expected


def test_the_table_of_gs_is_measured() -> None:
    found = rows(BENCHMARKS, "| NFE: GS")
    cells = gs_cells()
    assert [row[0] for row in found] == ["4", "6", "8", "10"] == list(cells)
    for nfe, *values in found:
        for name, value in zip(GS, values, strict=True):
            one = cells[nfe][name]
            mean, median = (one["fresh"][kind] for kind in ("mean", "median"))
            assert value == f"{mean:.3g} ({median:.3g}), {one['seconds']:.0f} s"


def test_the_table_of_pairs_is_measured() -> None:
    found = rows(BENCHMARKS, "| relative to the former default |")
    assert [name for name, *_ in found] == [*PAIRS]
    for name, *values in found:
        both = of_pairs(PAIRS[name])
        assert len(both) == 8
        ratios_of = {
            kind: [a[kind] / b[kind] for a, b in both]
            for kind in ("mean", "median", "iqm", "evaluations")
        }
        own = geometric([a["mean"] / a["valid"] for a, _ in both])
        expected = [geometric(ratios_of["mean"]), max(ratios_of["mean"])]
        expected += [geometric(ratios_of[kind]) for kind in ("median", "iqm")]
        assert values == [f"{x:.2f}" for x in (*expected, own, geometric(ratios_of["evaluations"]))]


VARIANTS = [
    ["lr 0.2, final_lr 0.1"], ["lr 0.2", "lr 0.05"], ["lr 0.2, lr_times 0.1"],
    ["lr 0.2, offset_window 0.9"], ["coupled network times"], ["coefficients"], ["gamma 0"],
    ["epochs 80", "batch 5"], ["batch 5, epochs 20"], ["batch 25"], ["averaged parameters"],
]  # fmt: skip
"""The variants of a row of the table of settings."""


def test_the_table_of_settings_is_measured() -> None:
    found = rows(BENCHMARKS, "| | mixtures |")
    for (_, *values), variants in zip(found, VARIANTS, strict=True):
        for kind, value in zip(("mixtures", "digits"), values, strict=True):
            summary_of = benchmark("defaults")[kind]["summary"]
            for text, variant in zip(value.split("; "), variants, strict=True):
                loss = summary_of[variant]["relative loss"]
                places = len(text.partition(".")[2])
                assert abs(float(text) - loss) <= 0.5 * 10**-places + 1e-6, (variant, kind, loss)


def test_the_table_of_result_tables_is_measured() -> None:
    found = {row[0]: row[1:] for row in rows(BENCHMARKS, "| | CPU |")}
    b = benchmark("tables")
    load, s3, single, many = b["load"], b["s3"], b["unmerged"], b["merge"]
    expected = {
        "`load_results`, a folder": (f"{load['cpu_seconds']:.2f} s", f"{load['seconds']:.1f} s",
                                     f"{load['peak_bytes'] / 1e9:.2f} GB"),
        "`load_results`, S3 (moto)": (f"{s3['cpu_seconds']:.2f} s", f"{s3['seconds']:.1f} s",
                                      f"{s3['peak_bytes'] / 1e9:.2f} GB"),
        "the index of all rows": (f"{load['index_cpu_seconds']:.2f} s", "", ""),
        f"`load_results`, {single['files']:,} files of one row": (
            f"{single['cpu_seconds'] / single['files'] * 1e3:.1f} ms a file",
            f"{single['seconds'] / single['files'] * 1e3:.1f} ms a file", ""),
        "merging, files of 20 rows": (f"{many['cpu_ms_a_row']:.2f} ms a row",
                                      f"{many['wall_ms_a_row']:.1f} ms a row", ""),
        "merging, files of one row": (f"{b['merge_single']['cpu_ms_a_row']:.1f} ms a row",
                                      f"{b['merge_single']['wall_ms_a_row']:.1f} ms a row", ""),
    }  # fmt: skip
    assert {name: tuple(values) for name, values in found.items()} == expected
    assert f"with {load['bytes_at_start'] / 1e9:.2f} GB of imports" in BENCHMARKS.read_text()


def test_the_arithmetic_of_large_sweeps_is_right() -> None:
    c = benchmark("cluster")
    share = c["thousand"]["driver_cpu_s"] / c["thousand"]["trials"]
    idle, each = c["thousand"]["overhead_per_trial_s"], c["growth"]["hollow_after"]["memory_kb"]
    base = c["growth"]["hollow_after"]["curve"]["memory_mb"][0]
    expected: list[list[str]] = [[], [], []]
    for seconds, most, digits in ((60, " at most", 0), (600, "", 1)):
        rate, trials = 1000 / seconds, 1000 * 3600 // seconds
        expected[0].append(f"{rate:.1f}; {100 * rate * share:.{digits}f} %{most}")
        expected[1].append(f"{100 * idle / seconds:.1g} %")
        expected[2].append(f"{trials:,}; {base / 1e3 + trials * each / 1e6:.1f} GB")
    assert [row[1:] for row in rows(BENCHMARKS, "| 1,000 GPUs,")] == expected
    assert f"idle share from {idle:.2f} s between trials" in BENCHMARKS.read_text()
