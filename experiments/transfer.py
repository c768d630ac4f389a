"""Schedules where they were not learned: matrices over solvers, NFE, pairs, guidance and models.

    python experiments/transfer.py runs/guidance      goes on where it was stopped

Digits, five seeds with pairs of their own. Learned here, by `learn`, and scored by `transfer`:

    solver     knots and network times of a schedule run by another solver, at 6 evaluations
    nfe        its noise levels as a published list, which `import` interpolates to another NFE
    pairs      its loss on the pairs that a schedule of another seed was learned with

From the sweep of experiments/guidance.yaml, whose five seeds share their pairs:

    guidance   at another scale, for digits and fashion
    model      digits' schedules for fashion and the other way round, at scale 1

`own` is the loss over that of the schedule of the same seed that was learned for the place, on the
same fresh samples; `gain` is the loss of the best hand-made grid there over the schedule's.

Writes results/transfer: transfer.csv (a row per schedule and place), summary.csv (a row per entry
of a matrix: geometric means over seeds with 95 % intervals), transfer.png.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import ld3_dist as ld3
from ld3_dist.core.learning.pairs import Pairs
from ld3_dist.core.sample import sample
from ld3_dist.metrics.paired import interval_over_sets
from ld3_dist.models import Model
from ld3_dist.schedule.export import export_sigmas
from ld3_dist.schedule.imports import import_schedule

SOLVERS, NFES, SEEDS = ("ddim", "dpmpp-3", "unipc-3", "ipndm-3"), (4, 6, 8), 5
SOLVER, NFE = "unipc-3", 6
LEARN = {"starts": ["log_snr"], "epochs": 6, "batch": 5}
GRIDS = ("uniform", "log_snr", "karras")
PAIRS, SAMPLES, FEWER = 100, 300, {"digits": 200, "fashion": 80}
FRESH = 10**6
"""The seed of the samples that schedules are scored on."""


class Work:
    """What is learned and scored, kept in a folder.

    sweep: folder of the sweep of guidance.yaml.
    """

    def __init__(self, folder: Path, sweep: Path) -> None:
        self.folder, self.sweep = folder, sweep
        (folder / "schedules").mkdir(parents=True, exist_ok=True)

    @cached_property
    def model(self) -> Model:
        """Digits."""
        return ld3.load_model("digits")

    @cached_property
    def pairs(self) -> list[Pairs]:
        """Pairs of every seed."""
        return [ld3.teach(self.model, PAIRS, seed=seed) for seed in range(SEEDS)]

    @cached_property
    def swept(self) -> pd.DataFrame:
        """The learned rows of the sweep, with the models' names free of their scales."""
        rows = ld3.load_results(self.sweep).query("kind == 'learned'")
        return rows.assign(model=rows["model"].str.replace(r"-w[\d.]+$", "", regex=True))

    def rows(self, part: str) -> list[dict[str, Any]]:
        """The rows of a part: digits, models, or guidance-MODEL."""
        if part == "digits":
            return [*self.solver(), *self.nfe(), *self.of_pairs()]
        if part == "models":
            return list(self.models())
        return list(self.guidance(part.removeprefix("guidance-")))

    def learned(self, solver: str, nfe: int, seed: int) -> Path:
        """The file of a schedule; it is learned if it is not there."""
        file = self.folder / "schedules" / f"{solver} {nfe} {seed}.json"
        if not file.exists():
            schedule = ld3.learn(self.model, solver, nfe, self.pairs[seed], seed=seed, **LEARN)
            schedule.save(file)
        return file

    def at_another_nfe(self, nfe: int, seed: int, other: int) -> Path:
        """The noise levels of a schedule, interpolated to another number of evaluations."""
        file = self.folder / "schedules" / f"{SOLVER} {nfe} {seed} for {other}.json"
        if not file.exists():
            levels = export_sigmas(ld3.load_schedule(self.learned(SOLVER, nfe, seed)))
            text = self.folder / f"{nfe}-{seed}.txt"
            text.write_text("\n".join(map(str, levels)))
            import_schedule(text, "sigmas", self.model, SOLVER, other).schedule.save(file)
        return file

    def scored(
        self, name: str, files: list[Path], model: str, samples: int = SAMPLES, **sites: Any
    ) -> pd.DataFrame:
        """Rows of `transfer` for some files, by the file's name."""
        frame = ld3.transfer(
            [str(file) for file in files], model, samples=samples, seed=FRESH, baselines=GRIDS,
            out=self.folder / "scores" / name, **sites,
        )  # fmt: skip
        return frame[frame["kind"] == "learned"].set_index("schedule")

    def solver(self) -> Iterator[dict[str, Any]]:
        """Every solver's schedules run by every solver."""
        files = {
            (solver, seed): self.learned(solver, NFE, seed)
            for solver, seed in product(SOLVERS, range(SEEDS))
        }
        found = self.scored("solver", list(files.values()), "digits", solvers=SOLVERS)
        for (solver, seed), file in files.items():
            for _, row in found.loc[[file.stem]].iterrows():
                yield entry("solver", "digits", NFE, solver, row["solver"], seed, row)

    def nfe(self) -> Iterator[dict[str, Any]]:
        """Every NFE's schedules at every NFE."""
        files = {
            (nfe, other, seed): self.learned(SOLVER, nfe, seed)
            if nfe == other
            else self.at_another_nfe(nfe, seed, other)
            for nfe, other, seed in product(NFES, NFES, range(SEEDS))
        }
        found = self.scored("nfe", list(files.values()), "digits")
        for (nfe, other, seed), file in files.items():
            yield entry("nfe", "digits", other, str(nfe), str(other), seed, found.loc[file.stem])

    def of_pairs(self) -> Iterator[dict[str, Any]]:
        """Every seed's schedule on the half of every seed's pairs that is trained on."""
        for seed, other in product(range(SEEDS), range(SEEDS)):
            schedule = ld3.load_schedule(self.learned(SOLVER, NFE, seed))
            pairs = self.pairs[other][PAIRS // 2 :]
            with torch.no_grad():
                x_T = schedule.prior_scale * pairs.noise
                made = sample(self.model.denoiser, schedule.tableau, x_T, pairs.condition)
            loss = float((made - pairs.target).square().mean())
            score = {"eval_loss": loss, "eval_gain": np.nan}
            yield entry("pairs", "digits", NFE, str(seed), str(other), seed, score)

    def guidance(self, model: str) -> Iterator[dict[str, Any]]:
        """Every scale's schedules at every scale."""
        for nfe, rows in self.swept.query("model == @model").groupby("nfe"):
            files = {key: self.sweep / f"schedules/{key}.json" for key in rows["key"]}
            scales = sorted(set(rows["guidance"]))
            found = self.scored(
                f"guidance-{model}-{nfe}", list(files.values()), model, FEWER[model],
                conditional=True, guidance=scales,
            )  # fmt: skip
            for row in records(rows):
                for _, score in found.loc[[row["key"]]].iterrows():
                    scale, other = (f"{value:g}" for value in (row["guidance"], score["guidance"]))
                    yield entry("guidance", model, nfe, scale, other, row["seed"], score)

    def models(self) -> Iterator[dict[str, Any]]:
        """The schedules without guidance of both models at both models."""
        rows = self.swept[self.swept["guidance"] == 1]
        files = [self.sweep / f"schedules/{key}.json" for key in rows["key"]]
        for model in sorted(set(rows["model"])):
            found = self.scored(f"model-{model}", files, model, FEWER[model], conditional=True)
            for row in records(rows):
                score = found.loc[row["key"]]
                yield entry("model", "both", row["nfe"], row["model"], model, row["seed"], score)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def entry(
    matrix: str, model: str, nfe: int, learned: str, scored: str, seed: int, score: Any
) -> dict[str, Any]:
    """A row of the table: where a schedule was learned, where it is scored, its loss and gain."""
    return {
        "matrix": matrix, "model": model, "nfe": int(nfe), "learned": learned, "scored": scored,
        "seed": int(seed), "loss": score["eval_loss"], "gain": score["eval_gain"],
    }  # fmt: skip


def with_own(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each loss over that of the schedule that was learned for the place."""
    at = ["matrix", "model", "nfe", "scored", "seed"]
    own = table[table["learned"] == table["scored"]]
    if len(other := own[own["matrix"] == "pairs"]):  # on one seed's pairs the other is its seed
        own = own.drop(other.index)
        paired = other.assign(seed=other["scored"].astype(int))[["matrix", "scored", "loss"]]
        pairs = table[table["matrix"] == "pairs"].merge(paired, on=["matrix", "scored"],
                                                        suffixes=("", "_own"))  # fmt: skip
    rest = table[table["matrix"] != "pairs"].merge(own[[*at, "loss"]], on=at, suffixes=("", "_own"))
    both = pd.concat([rest, pairs]) if len(other) else rest
    return both.assign(own=both["loss"] / both["loss_own"]).drop(columns="loss_own")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row per entry of a matrix: geometric means over seeds with their intervals.

    Of the matrix of pairs one row is left: the schedules of the others on the pairs of a seed.
    """
    rows = []
    others = table[(table["matrix"] == "pairs") & (table["learned"] != table["scored"])]
    means = np.log(others.set_index("scored")["own"]).groupby("scored").mean()
    one = others.drop_duplicates("scored").assign(
        own=np.exp(means).to_numpy(), learned="other pairs", scored="a seed's pairs"
    )
    table = pd.concat([table[table["matrix"] != "pairs"], one])
    for key, group in table.groupby(["matrix", "model", "nfe", "learned", "scored"], sort=False):
        row = dict(zip(("matrix", "model", "nfe", "learned", "scored"), key, strict=True))
        row["seeds"] = len(group)
        for name in ("own", "gain"):
            found = interval_over_sets(np.log(group[name].to_numpy(dtype=float)))
            row |= {
                f"{name}{end}": np.exp(value)
                for end, value in (("", found.value), ("_low", found.low), ("_high", found.high))
            }
        rows.append(row)
    return pd.DataFrame(rows)


def draw(found: pd.DataFrame, file: Path) -> None:
    """A panel per matrix: loss over that of the schedule that was learned for the place."""
    from matplotlib.figure import Figure

    panels = list(found[found["matrix"] != "pairs"].groupby(["matrix", "model"], sort=False))
    figure = Figure(figsize=(3.1 * len(panels), 3.6), layout="constrained")
    for axes, ((matrix, model), rows) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        logs = rows.assign(own=np.log(rows["own"]))
        wide = np.exp(logs.pivot_table(index="learned", columns="scored", values="own"))
        order = sorted(wide.index, key=lambda name: (not name[0].isdigit(), name))
        wide = wide.loc[order, order]
        axes.imshow(np.log10(wide), cmap="RdBu_r", vmin=-1, vmax=1)
        for (i, j), value in np.ndenumerate(wide.to_numpy()):
            ink = "white" if abs(np.log10(value)) > 0.7 else "black"
            axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=8, color=ink)
        axes.set_xticks(range(len(order)), order, fontsize=8)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        axes.set_xlabel("scored at")
        axes.set_ylabel("learned at")
        axes.set_title({"both": matrix}.get(model, f"{matrix}, {model}"), fontsize=10)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("guidance", type=Path, help="folder of the sweep of guidance.yaml")
    parser.add_argument(
        "--models", nargs="+", default=sorted(FEWER), help="models of the matrix of guidance"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--output", type=Path, default=Path("results/transfer"))
    parser.add_argument("--workers", type=int, default=2, help="processes")
    given = parser.parse_args()
    work = Work(given.work, given.guidance)
    parts = ["digits", "models", *(f"guidance-{model}" for model in given.models)]
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        longest_first = [parts[0], *reversed(parts[1:])]
        made = {part: pool.apply_async(work.rows, [part]) for part in longest_first}
        rows = [row for part in parts for row in made[part].get()]
    table = with_own(pd.DataFrame(rows))
    given.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.output / "transfer.csv", index=False, float_format="%.6g")
    found = summary(table)
    found.to_csv(given.output / "summary.csv", index=False, float_format="%.5g")
    draw(found, given.output / "transfer.png")


if __name__ == "__main__":
    main()
