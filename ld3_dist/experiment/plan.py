"""What follows from an experiment: its cells and trials, which samples serve what, keys and
fingerprints, cost.

Keys are hashes of resolved settings, so the same work has the same name on every machine and in
every run. Samples are numbered; one range validates all members, one per seed trains, one is kept
for the evaluation:

    [0, V)  validation      [V + s T, V + (s+1) T)  training of seed s      [V + S T, V + S T + E)
            evaluation
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from ..core.learning.learn import LearnConfig
from ..core.solver import make_solver
from .settings import Experiment, ModelSettings

FORMAT = 1


def digest(value: Any) -> str:
    """A short stable hash of JSON-able settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cell:
    """(model, solver, NFE, conditioning): losses of two cells cannot be compared."""

    model: ModelSettings
    solver: str
    nfe: int

    @property
    def id(self) -> str:
        """The cell's name in tables and messages."""
        return f"{self.model.label}/{self.solver}/{self.nfe}"

    @property
    def steps(self) -> int:
        """Number of steps of the grids."""
        return make_solver(self.solver).steps(self.nfe)


@dataclass(frozen=True)
class TrialSpec:
    """One point of a cell's study, resolved: LearnConfig fields, distance, starts and seeds of its
    members.
    """

    cell: Cell
    settings: dict[str, Any]
    key: str

    @property
    def config(self) -> LearnConfig:
        """How its members learn."""
        return LearnConfig.of(**self.settings["learn"])

    @property
    def members(self) -> list[tuple[int, str]]:
        """(seed number, start) of every member, starts varying fastest."""
        return list(itertools.product(range(self.settings["seeds"]), self.settings["starts"]))


@dataclass(frozen=True)
class Plan:
    """An experiment with the hashes of its models' weights, from which every name follows.

    conditionings: what the samples of a model are conditioned on (`Model.conditioning`), by label;
        the content of prompts and classes files is in it, so that an edited file gives new pairs.
    """

    experiment: Experiment
    model_hashes: dict[str, str]
    conditionings: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """What an output folder belongs to: everything that changes results; not the resources, not
        the name.
        """
        settings = self.experiment.model_dump(mode="json", exclude={"resources", "name"})
        settings |= {key: _plain_numbers(settings[key]) for key in ("learn", "search")}
        if not self.experiment.search.asha:
            del settings["search"]["asha"]  # folders from before there was such a key go on
        models = {"models": self.model_hashes, "conditionings": self.conditionings}
        return digest({"format": FORMAT, "experiment": settings, **models})

    @property
    def cells(self) -> list[Cell]:
        """All cells, models outermost."""
        e = self.experiment
        return [Cell(m, s, n) for m, s, n in itertools.product(e.models, e.solvers, e.nfe)]

    def teacher_meta(self, model: ModelSettings) -> dict[str, Any]:
        """What the teacher's pairs depend on."""
        e = self.experiment
        options = model.model_dump(
            mode="json",
            exclude={"name", "channels_last", "compile", "recompute"},
            exclude_defaults=True,
        )
        made_by = {"model": digest(options), "hash": self.model_hashes[model.label], "seed": e.seed}
        made_by |= {"conditioning": self.conditionings.get(model.label), "space": e.loss_space}
        return made_by | e.teacher.model_dump()

    def teacher_key(self, model: ModelSettings) -> str:
        """Folder of the teacher's pairs."""
        return digest(self.teacher_meta(model))

    @property
    def valid_range(self) -> tuple[int, int]:
        """Samples every member is validated on."""
        return 0, self.experiment.pairs.valid

    def train_range(self, seed: int | None = None) -> tuple[int, int]:
        """Samples the members of a seed train on; of all seeds if None."""
        pairs, seeds = self.experiment.pairs, self.experiment.search.members.seeds
        first, last = (0, seeds) if seed is None else (seed, seed + 1)
        return pairs.valid + first * pairs.train, pairs.valid + last * pairs.train

    @property
    def eval_range(self) -> tuple[int, int]:
        """Fresh samples of the evaluation."""
        start = self.train_range()[1]
        return start, start + self.experiment.evaluate.samples

    def shards(self) -> list[tuple[int, int]]:
        """Fixed index ranges of the teacher's shards; none spans learning and evaluation."""
        size, ranges = self.experiment.resources.shard, []
        for start, stop in ((0, self.train_range()[1]), self.eval_range):
            ranges += [(i, min(i + size, stop)) for i in range(start, stop, size)]
        return ranges

    def grid_points(self) -> list[dict[str, Any]]:
        """Every combination of the grid axes, by their names: the order in the file changes
        nothing.
        """
        axes = dict(sorted(self.experiment.search.grid.items()))
        return [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]

    def trial(self, cell: Cell, values: dict[str, Any]) -> TrialSpec:
        """Resolve the values of the searched axes into a trial."""
        e = self.experiment
        values = dict(values)
        starts = [values.pop("start")] if "start" in values else list(e.search.members.starts)
        distance = values.pop("distance", e.distance)
        own = {"checkpointing": "on"} if cell.model.recompute else {}
        merged = LearnConfig.of(**{**_typed(e.learn), **_typed(values), **own, "seed": e.seed})
        learn = {name: getattr(merged, name) for name in LearnConfig.__dataclass_fields__}
        settings = {
            "learn": learn,
            "distance": distance,
            "starts": starts,
            "seeds": e.search.members.seeds,
        }
        settings["distance_options"] = e.distance_options(distance)
        key = digest({
            "settings": settings, "solver": cell.solver, "nfe": cell.nfe,
            "pairs": e.pairs.model_dump(), "teacher": self.teacher_meta(cell.model),
        })  # fmt: skip
        return TrialSpec(cell, settings, key)

    def baseline_key(self, cell: Cell) -> str:
        """Key of the baseline rows of a cell."""
        e = self.experiment
        return "baseline-" + digest({
            "solver": cell.solver, "nfe": cell.nfe, "starts": e.baselines,
            "distances": {name: e.distance_options(name) for name in e.distances},
            "pairs": e.pairs.model_dump(), "teacher": self.teacher_meta(cell.model),
        })  # fmt: skip

    def cost(self) -> dict[str, int]:
        """Estimate in network evaluations of one sample, if no member stops early; a backward pass
        counts as two.
        """
        e = self.experiment
        teacher = len(e.models) * sum(b - a for a, b in self.shards()) * e.teacher.nfe
        search = evaluate = 0
        for cell in self.cells:
            trials = [self.trial(cell, point) for point in self.grid_points()]
            search += len(e.baselines) * e.pairs.valid * cell.nfe
            for trial in trials:
                samples = trial.config.samples(e.pairs.train, e.pairs.valid)
                search += e.search.rounds * len(trial.members) * samples * cell.nfe
            evaluate += (len(e.baselines) + len(trials[0].members)) * e.evaluate.samples * cell.nfe
        return {"teach": teacher, "search": search, "evaluate": evaluate}


def _plain_numbers(value: Any) -> Any:
    """The same settings with every whole number as a float, so that 1 and 1.0 are the same setting."""
    if isinstance(value, dict):
        return {k: _plain_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers in the type LearnConfig has them in, so that 1 and 1.0 are the same setting."""
    defaults = LearnConfig()
    return {k: type(getattr(defaults, k))(v) for k, v in values.items()}
