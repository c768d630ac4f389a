"""The JSON block of the page: the numbers that its script sorts, draws, compares and copies.

    metrics   [{id, label, lower}]: measured scores; lower is better, or higher
    cells     one per line of the summary, in its order:
                  section, cell, model, solver, nfe, family    where it belongs
                  method, status                               for the filters
                  best, base       rows of the best schedule and of the hand-made grid to compare
                                   with, as positions in `rows`; null where there is none
                  gains            name of a hand-made grid -> [low, high], the paired 95 %
                                   interval of the best schedule's gain over it on fresh samples
                  teacher          values of the teacher, in the order of the metrics
                  file             the best schedule's file, whole
                  code             [title, text]: its path and the lines that use it
                  more             learned rows left out
                  rows             key, kind, name (its start), method, gamma, seed, status,
                                   v: values, i: intervals, in the order of the metrics
                                   t: knots, e: network times, s: sigmas, n: timesteps

Null stands for what was not measured. Where s is absent, the knots are the sigmas.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..core.errors import InputError
from ..core.noise import NoiseSchedule
from ..metrics.paired import ratios
from ..models.diffusers.network_outputs import network_times
from ..schedule.file import Schedule, read_schedule
from ..store.frames import column, groups, of_kind, records, where
from .columns import Row
from .formats import missing, visible
from .headline import unit
from .scores import measured
from .summary import comparable, method, teacher_scores
from .tables import SweepTables

MOST_ROWS = 3000
"""Learned rows of a page; every cell has as many of them, its best ones."""


def page_data(sweep: SweepTables, table: pd.DataFrame, sections: Mapping[int, int]) -> str:
    """The JSON of a page, for inside a <script> element.

    Args:
        table: from `summary_table`.
        sections: line of the table -> number of its section.
    """
    metrics = [
        {"id": score.name, "label": score.label, "lower": score.lower}
        for score in measured(sweep.results)
    ]
    every = [str(metric["id"]) for metric in metrics]
    most = max(3, MOST_ROWS // max(1, len(table)))
    teachers = teacher_scores(sweep.evaluations)
    parts = _parts(sweep.results, table)
    losses = _losses(sweep, parts)
    noises: dict[str, NoiseSchedule | None] = {}
    cells = [
        _Cell(sweep, row, rows, every, most, noises).body(teachers, losses)
        | {"section": sections[i]}
        for i, (row, rows) in enumerate(zip(records(table), parts, strict=True))
    ]
    text = json.dumps(
        {"metrics": metrics, "cells": cells, "unit": unit(table)},
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _parts(frame: pd.DataFrame, table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each line of the summary."""
    left = [rows for _, rows in groups(frame, comparable(frame), sort=False, nulls=True)]
    found = []
    for line in records(table):
        place = next(i for i, rows in enumerate(left) if _is_of(rows, line))
        found.append(left.pop(place))
    return found


def _is_of(rows: pd.DataFrame, line: Row) -> bool:
    if not missing(line["key"]):
        return bool((column(rows, "key") == line["key"]).any())
    first = records(rows.head(1))[0]
    learned = of_kind(rows, "learned", "ok")
    same = all(_text(first[name]) == _text(line[name]) for name in ("cell", "distance"))
    return same and not column(learned, "valid_loss").notna().any()


def _losses(sweep: SweepTables, parts: Sequence[pd.DataFrame]) -> Mapping[str, np.ndarray]:
    """Sample by sample, the losses of every best schedule and hand-made grid."""
    wanted: set[str] = set()
    for rows in parts:
        wanted |= {str(key) for key in rows["key"][rows["best"].astype(bool)]}
        wanted |= {str(key) for key in column(of_kind(rows, "baseline", "ok"), "key")}
    with contextlib.suppress(OSError, ValueError, KeyError):
        return sweep.losses(wanted)
    return {}


class _Cell:
    """The JSON of one line of the summary."""

    def __init__(
        self,
        sweep: SweepTables,
        line: Row,
        rows: pd.DataFrame,
        metrics: Sequence[str],
        most: int,
        noises: dict[str, NoiseSchedule | None],
    ) -> None:
        self.line, self.metrics = line, metrics
        learned = of_kind(rows, "learned").sort_values(
            ["best", "valid_loss"], ascending=[False, True], na_position="last", kind="stable"
        )
        grids = of_kind(rows, "baseline").sort_values("valid_loss", kind="stable")
        self.more = max(0, len(learned) - most)
        self.rows = [*records(learned.head(most)), *records(grids)]
        self.file, noise = _file(sweep, line["key"])
        model = str(line["model"])
        if noise is not None:
            noises[model] = noise
        elif model not in noises:
            of_model = column(sweep.results, "model") == line["model"]
            noises[model] = sweep.noise_of(where(sweep.results, of_model))
        self.noise = noises[model]

    def body(
        self,
        teachers: Mapping[str, Mapping[str, Any]],
        losses: Mapping[str, np.ndarray],
    ) -> dict[str, Any]:
        line = self.line
        best = self._place(lambda row: row["key"] == line["key"])
        base = self._place(
            lambda row: row["kind"] == "baseline" and row["start"] == line["baseline"]
        )
        steps = bool(self.rows) and self._timesteps(self.rows[0].get("evals")) is not None
        return {
            **{name: _text(line[name]) for name in ("cell", "model", "solver")},
            "nfe": int(line["nfe"]),
            "family": self._family(),
            "method": _text(line["method"]) or "–",
            "status": status_of(line),
            "best": best,
            "base": base,
            "gains": self._gains(best, base, losses),
            "teacher": self._values(teachers.get(str(self.rows[0]["teacher"]), {})),
            "file": json.loads(self.file.to_json()) if self.file else None,
            "code": [] if best is None else self._code(steps),
            "more": self.more,
            "rows": [self._row(row) for row in self.rows],
        }

    def _family(self) -> str:
        """The cells that differ in NFE alone have the same one."""
        line = self.line
        given = _text(line["conditioning"])
        conditioned = "" if given in ("", "none") else f" · {given}"
        guided = "" if missing(line["guidance"]) else f" · guidance {line['guidance']:g}"
        return visible(f"{line['solver']}{conditioned}{guided}")

    def _code(self, steps: bool) -> list[tuple[str, str]]:
        """(title, text) of what one types to use the best schedule, from inside the folder."""
        line, file = self.line, f"schedules/{self.line['key']}.json"
        form = "diffusers --out scheduler" if steps else "sigmas"
        model = json.dumps(visible(str(line["model"])), ensure_ascii=False)
        found = [
            (
                "Schedule file, in the sweep's folder"
                if self.file
                else "Schedule file, which is not in the sweep's folder any more",
                file,
            ),
            ("Export", f"ld3-dist export {file} --format {form}"),
            (
                "In Python",
                f"import ld3_dist as ld3\nmodel = ld3.load_model({model})\n"
                f'x_0 = ld3.load_schedule("{file}").sample(model, n=16)',
            ),
        ]
        guided = not missing(line["guidance"]) and line["guidance"] != 1
        guidance = f", guidance_scale={line['guidance']:g}" if guided else ""
        if not steps:
            return [*found, ("In diffusers", "# no diffusers pipeline has a network of this kind")]
        lines = (
            "from ld3_dist.integrations.diffusers import LD3Scheduler\n"
            f'pipe.scheduler = LD3Scheduler.from_schedule("{file}", pipe.scheduler)\n'
            f"image = pipe(prompt, num_inference_steps={line['nfe']}{guidance}).images[0]"
        )
        return [*found, ("In diffusers", lines)]

    def _place(self, chosen: Any) -> int | None:
        return next((i for i, row in enumerate(self.rows) if chosen(row)), None)

    def _values(self, row: Row) -> list[float | None]:
        return [_number(row.get(name)) for name in self.metrics]

    def _row(self, row: Row) -> dict[str, Any]:
        learned = row["kind"] == "learned"
        found: dict[str, Any] = {
            "key": _text(row["key"]),
            "kind": row["kind"],
            "name": _text(row["start"]),
            "method": method(row) if learned else "hand-made",
            "gamma": _number(row["gamma"]) if learned else None,
            "seed": _number(row["seed"]) if learned else None,
            "status": row["status"],
            "v": self._values(row),
            "i": [_interval(row, name) for name in self.metrics],
            "t": _list(row["knots"]),
            "e": _list(row["evals"]),
            "n": self._timesteps(row["evals"]),
        }
        sigmas = self._sigmas(row["knots"])
        if sigmas is None or sigmas != found["t"]:
            found["s"] = sigmas
        return {key: value for key, value in found.items() if value is not None or key == "s"}

    def _sigmas(self, knots: Any) -> list[float] | None:
        """sigma / alpha at the knots, for a flow model the times; None where that is not known."""
        times = _list(knots)
        if times is None or self.noise is None:
            return None
        if self.noise.name in ("edm", "flow"):
            return times
        t = torch.tensor(times, dtype=torch.float64)
        found = (self.noise.sigma(t) / self.noise.alpha(t)).tolist()
        return found if all(map(math.isfinite, found)) else None

    def _timesteps(self, evals: Any) -> list[float] | None:
        """Network times in the network's own steps; None for networks that count none."""
        times = _list(evals)
        if times is None or self.noise is None:
            return None
        with contextlib.suppress(InputError):
            return network_times(self.noise, torch.tensor(times, dtype=torch.float64), 1000)
        return None

    def _gains(
        self, best: int | None, base: int | None, losses: Mapping[str, np.ndarray]
    ) -> dict[str, list[float]]:
        """Name of a hand-made grid -> the interval of the best schedule's gain over it."""
        found = {}
        mine = losses.get(str(self.line["key"]), np.empty(0))
        grids = [row for row in self.rows if row["kind"] == "baseline"]
        kept = {str(row["start"]): losses.get(str(row["key"]), np.empty(0)) for row in grids}
        kept = {name: values for name, values in kept.items() if 0 < len(values) == len(mine)}
        if kept:
            _, low, high = ratios(np.stack(list(kept.values())), mine)
            ends = zip(kept, low.tolist(), high.tolist(), strict=True)
            found = {visible(name): [a, b] for name, a, b in ends if math.isfinite(a + b)}
        known = (_number(self.line["eval_gain_low"]), _number(self.line["eval_gain_high"]))
        if best is not None and base is not None and None not in known:
            found[visible(str(self.rows[base]["start"]))] = [float(end or 0) for end in known]
        return found


def status_of(line: Row) -> str:
    """The state of a cell in a word or two, which the page filters by."""
    if missing(line["key"]):
        return "nothing learned" if not line["learned"] else "failed"
    if not missing(line["decided"]):
        gain = line["eval_gain"]
        return "undecided" if not line["decided"] else "better" if gain > 1 else "worse"
    return "not evaluated"


def _file(sweep: SweepTables, key: Any) -> tuple[Schedule | None, NoiseSchedule | None]:
    """The schedule file of a row with its noise schedule; None where it is gone or damaged.

    The noise schedule is None where it is a class of a user's file, which is not imported here.
    """
    schedule = None
    if not missing(key):
        with contextlib.suppress(OSError, InputError, KeyError, TypeError, ValueError):
            schedule = read_schedule(sweep.storage, f"schedules/{key}.json")
            return schedule, schedule.noise_schedule
    return schedule, None


def _interval(row: Row, name: str) -> list[float] | None:
    """The 95 % interval of a score of one row, where its evaluation has one."""
    low, high = _number(row.get(f"{name}_low")), _number(row.get(f"{name}_high"))
    if low is not None and high is not None:
        return [low, high]
    value, error = _number(row.get(name)), _number(row.get(f"{name}_sem"))
    if value is None or error is None:
        return None
    return [value - 1.96 * error, value + 1.96 * error]


def _number(value: Any) -> float | None:
    if missing(value) or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)


def _text(value: Any) -> str:
    return "" if missing(value) else visible(str(value))


def _list(values: Any) -> list[float] | None:
    if values is None or np.ndim(values) == 0:
        return None
    return [float(value) for value in values]
