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
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.learning.config import LearnConfig
from ..core.learning.procedure import make_config, procedures
from ..core.solver import make_solver, solvers
from ..core.user_code import PREFIX, content_in, label
from ..schedule.starts import starts as start_table
from ..schedule.teaching import Teacher
from .sections import ModelSettings
from .settings import Experiment

FORMAT = 2
"""Of an output folder; 1 had other keys, paths in them, and presets in place of procedures."""


HOW = ("channels_last", "compile", "recompute")
"""Options of a model that change its speed, and its samples by rounding at most."""


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
        return f"{self.model.label}/{label(self.solver)}/{self.nfe}"

    @property
    def steps(self) -> int:
        """Number of steps of the grids."""
        return make_solver(self.solver).steps(self.nfe)


@dataclass(frozen=True)
class TrialSpec:
    """One point of a cell's study, resolved: settings of learning, distance, starts and seeds."""

    cell: Cell
    settings: dict[str, Any]
    key: str

    @property
    def config(self) -> LearnConfig:
        """How its members learn."""
        return make_config(**self.settings["learn"])

    @property
    def members(self) -> list[tuple[int, str]]:
        """(seed number, start) of every member, starts varying fastest."""
        return list(itertools.product(range(self.settings["seeds"]), self.settings["starts"]))


@dataclass(frozen=True)
class Plan:
    """An experiment with the hashes of its models' weights, from which every name follows.

    conditionings: what the samples of a model are conditioned on (`Model.conditioning`), by label;
        the content of prompts and classes files is in it, so that an edited file gives new pairs.
    contents: a hash for every name `python:FILE.py:NAME` and every schedule file in the settings;
        keys hold it in the place of the path. It is made where the plan is made, and workers keep
        it, so that all agree about keys.
    """

    experiment: Experiment
    model_hashes: dict[str, str]
    conditionings: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.contents is None:
            object.__setattr__(self, "contents", contents_of(self.experiment))

    @property
    def fingerprint(self) -> str:
        """What an output folder belongs to: a hash of `identity`."""
        return digest(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes results: not the resources, not names, and content for paths."""
        settings = self.experiment.model_dump(mode="json", exclude={"resources", "name", "report"})
        settings |= {key: _plain_numbers(settings[key]) for key in ("learn", "search")}
        if not self.experiment.search.asha:
            del settings["search"]["asha"]  # folders from before there was such a key go on
        settings = self._portable(settings)
        settings["models"] = [self._model_identity(m) for m in self.experiment.models]
        return {"format": FORMAT, **settings}

    def _model_identity(self, model: ModelSettings) -> dict[str, Any]:
        """A model without paths: its weights, its conditions, and the options that are set."""
        options = model.model_dump(
            mode="json",
            exclude={"name", "model", "prompts", "classes"},
            exclude_defaults=True,
        )
        return {
            "family": model.model.partition(":")[0],
            "weights": self.model_hashes[model.label],
            "conditioning": content_of_conditioning(self.conditionings.get(model.label)),
            **options,
        }

    def _portable(self, value: Any) -> Any:
        """The same settings with the content of files in the place of their paths."""
        if isinstance(value, dict):
            return {key: self._portable(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._portable(item) for item in value]
        if isinstance(value, str) and value in (self.contents or {}):
            return f"{_without_folder(value)} {(self.contents or {})[value]}"
        return label(value) if isinstance(value, str) and PREFIX in value else value

    @property
    def cells(self) -> list[Cell]:
        """All cells, models outermost."""
        e = self.experiment
        return [Cell(m, s, n) for m, s, n in itertools.product(e.models, e.solvers, e.nfe)]

    def teacher_meta(self, model: ModelSettings) -> dict[str, Any]:
        """What the teacher's pairs depend on."""
        e = self.experiment
        found = self._model_identity(model)
        weights, conditioning = found.pop("weights"), found.pop("conditioning")
        options = {k: v for k, v in found.items() if k not in HOW}
        made_by = {"model": digest(options), "seed": e.seed, "hash": weights}
        made_by |= {"conditioning": conditioning, "space": e.loss_space}
        return made_by | self._portable(e.teacher.model_dump())

    @property
    def teacher(self) -> Teacher:
        """The teacher of the experiment."""
        return Teacher(**self.experiment.teacher.model_dump())

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
        start, distance = values.pop("start", None), values.pop("distance", e.distance)
        own = {"checkpointing": "always"} if cell.model.recompute else {}
        given: dict[str, Any] = {**e.learn, **values, **own, "seed": e.seed}
        config = make_config(**given)
        names = e.search.members.starts or procedures.get(config.procedure).starts
        settings = {
            "learn": asdict(config),
            "distance": distance,
            "distance_options": e.distance_options(distance),
            "starts": list(names) if start is None else [start],
            "seeds": e.search.members.seeds,
        }
        versions = {"procedure": procedures.version(config.procedure)}
        versions |= self._versions(cell, settings["starts"])
        key = digest(
            {
                "settings": self._portable(settings),
                "solver": self._portable(cell.solver),
                "nfe": cell.nfe,
                "pairs": e.pairs.model_dump(),
                "teacher": self.teacher_meta(cell.model),
                "versions": versions,
            }
        )
        return TrialSpec(cell, settings, key)

    def _versions(self, cell: Cell, names: Iterable[str]) -> dict[str, str]:
        """What keys must know of registered solvers and starts beside their names."""
        plain = cell.solver.partition("?")[0].removesuffix("-bh2")
        found = {name: start_table.version(name) for name in names if name in start_table}
        found |= {"solver": solvers.version(plain) if plain in solvers else None}
        return {name: version for name, version in found.items() if version is not None}

    def baseline_key(self, cell: Cell) -> str:
        """Key of the baseline rows of a cell."""
        e = self.experiment
        return "baseline-" + digest(
            {
                "solver": self._portable(cell.solver),
                "nfe": cell.nfe,
                "starts": self._portable(e.baselines),
                "distances": {
                    self._portable(name): self._portable(e.distance_options(name))
                    for name in e.distances
                },
                "pairs": e.pairs.model_dump(),
                "teacher": self.teacher_meta(cell.model),
                "versions": self._versions(cell, e.baselines),
            }
        )

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


def contents_of(experiment: Experiment) -> dict[str, str]:
    """A hash of each file that an experiment names: code, schedules to start from, LPIPS trunks,
    reference statistics, weights of extractors. The models' hashes hold their own.
    """
    settings = experiment.model_dump(mode="json", exclude={"models", "report", "resources", "name"})
    found: dict[str, str] = {}
    for name in sorted(set(_words(settings))):
        content = content_in(name)
        if content is None and name.endswith(".json") and Path(name).is_file():
            content = hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]
        if content is not None:
            found[name] = content
    for name in files_of(experiment):
        with open(Path(_path(name)).expanduser(), "rb") as file:
            found.setdefault(name, hashlib.file_digest(file, "sha256").hexdigest()[:16])
    return found


def files_of(experiment: Experiment) -> list[str]:
    """Names in the settings that stand for a file of weights or statistics, as they are written."""
    evaluate = experiment.evaluate
    names = [experiment.lpips.trunk, evaluate.reference, evaluate.extractor]
    return [name for name in names if name and Path(_path(name)).expanduser().is_file()]


def _path(name: str) -> str:
    """The path in "inception:FILE" or "FILE"."""
    kind, colon, rest = name.partition(":")
    return rest if colon and kind.isalpha() and kind != PREFIX.rstrip(":") else name


def _without_folder(name: str) -> str:
    """A name without the path of its file."""
    if PREFIX in name or name.endswith(".json"):
        return label(name)
    return name.removesuffix(_path(name)) or "file"


def content_of_conditioning(name: str | None) -> str | None:
    """ "prompts:<file>:<hash>" without the file's name."""
    kind, colon, rest = (name or "").partition(":")
    return f"{kind}:{rest.rpartition(':')[2]}" if colon else name


def _words(value: Any) -> Iterator[str]:
    """Every text in a structure of settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _words(item)


def _plain_numbers(value: Any) -> Any:
    """The same settings with whole numbers as floats, so that 1 and 1.0 are the same setting."""
    if isinstance(value, dict):
        return {k: _plain_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
