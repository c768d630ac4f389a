"""Everything that follows from an experiment: cells, trials, keys, sample ranges.

Keys are hashes of resolved settings, so the same work has the same name on every machine and in
every run. A trial key names one point of a cell. A row key adds the member's seed and start, so
that more seeds or starts leave all other rows as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ..core.learning.procedure import make_config, procedures
from ..core.solver import solvers
from ..core.user_code import label
from ..schedule import ranges
from ..schedule.starts import grid_name, looks_at_pairs, start_version
from ..schedule.teaching import Teacher
from . import points as points_module
from .axes import check_value
from .cells import Cell, TrialSpec
from .contents import content_of_conditioning, contents_of, digest, plain_numbers, portable
from .families import NFES, nfes_of
from .points import Point, model_at
from .sections import ModelSettings
from .settings import Experiment

FORMAT = 3
"""Of an output folder. Format 1 had paths in its keys; in 2, counts moved the ranges of samples."""

HOW = ("channels_last", "compile", "recompute")
"""Options of a model that change its speed, and its samples by rounding at most."""


@dataclass(frozen=True)
class Plan:
    """An experiment with the hashes of its models' weights, from which every name follows.

    model_hashes: by label of the model.
    conditionings: what the samples of a model are conditioned on (`Model.conditioning`), by label;
        the content of prompts and classes files is in it, so that an edited file gives new pairs.
    contents: a hash for every name `python:FILE.py:NAME` and every schedule file in the settings;
        keys hold it in the place of the path. It is made where the plan is made, and workers keep
        it, so that all agree about keys.
    at_t_max: models whose sampling begins at t_max where no starts are named.
    """

    experiment: Experiment
    model_hashes: dict[str, str]
    conditionings: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] | None = None
    at_t_max: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.contents is None:
            object.__setattr__(self, "contents", contents_of(self.experiment))

    def content(self, name: str) -> str | None:
        """The hash of the file or folder that a name in the settings stands for, if it is one."""
        return (self.contents or {}).get(name)

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone; what is derived from them is made again elsewhere."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @cached_property
    def fingerprint(self) -> str:
        """Name of this version of the experiment in a folder: a hash of `identity`."""
        return digest(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes results: not the resources, not names, and content for paths."""
        settings = self.experiment.model_dump(mode="json", exclude={"resources", "name", "report"})
        settings |= {key: plain_numbers(settings[key]) for key in ("learn", "search", "ablate")}
        settings = self.portable(settings)
        settings["models"] = [self.model_identity(m) for m in self.experiment.models]
        return {"format": FORMAT, **settings}

    def model_identity(self, model: ModelSettings) -> dict[str, Any]:
        """A model without paths: its weights, its conditions, and the options that are set."""
        options = model.model_dump(
            mode="json",
            exclude={"name", "model", "prompts", "classes"},
            exclude_defaults=True,
        )
        return {
            "family": model.model.partition(":")[0],
            "weights": self.hash_of(model),
            "conditioning": content_of_conditioning(self.conditioning_of(model)),
            **options,
        }

    def portable(self, value: Any) -> Any:
        """Settings with the content of files in place of their paths."""
        return portable(value, self.contents or {})

    # models, cells and points

    def points(self) -> list[Point]:
        """Every combination of axis values that the cells are tried with."""
        return self._points

    @cached_property
    def _points(self) -> list[Point]:
        return points_module.points_of(self.experiment)

    @cached_property
    def _variants(self) -> list[tuple[ModelSettings, ModelSettings]]:
        """(model with the guidance of some point, the model as the file has it)."""
        levels = {point.get("guidance") for point in self._points}
        found: list[tuple[ModelSettings, ModelSettings]] = []
        for model in self.experiment.models:
            for guidance in sorted(levels, key=lambda value: (value is not None, value)):
                variant = model_at(model, {"guidance": guidance})
                if all(variant != other for other, _ in found):
                    found.append((variant, model))
        return found

    @cached_property
    def models(self) -> list[ModelSettings]:
        """Every model of a cell: those of the file, with each guidance of the points."""
        return [variant for variant, _ in self._variants]

    def source_of(self, model: ModelSettings) -> ModelSettings:
        """The model of the file that a model is made from by another guidance."""
        return next((own for variant, own in self._variants if variant == model), model)

    def hash_of(self, model: ModelSettings) -> str:
        """Hash of a model's weights; guidance does not change them."""
        if model.label in self.model_hashes:
            return self.model_hashes[model.label]
        return self.model_hashes[self.source_of(model).label]

    def conditioning_of(self, model: ModelSettings) -> str | None:
        """The condition of a model's samples, by its label; None if it is not known."""
        own = self.conditionings.get(self.source_of(model).label)
        return self.conditionings.get(model.label, own)

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, models outermost."""
        e = self.experiment
        return [Cell(m, s, n) for m, s, n in itertools.product(self.models, e.solvers, e.nfe)]

    @cached_property
    def _cells_by_id(self) -> dict[str, Cell]:
        return {cell.id: cell for cell in self.cells}

    def cell(self, name: str) -> Cell:
        """The cell of a name; KeyError if there is none."""
        return self._cells_by_id[name]

    def points_of(self, cell: Cell) -> list[Point]:
        """The points of a cell: those with the guidance of its model, which they then leave out."""
        own = self.source_of(cell.model)
        if not any("guidance" in point for point in self._points):
            return self._points
        return [
            {axis: value for axis, value in point.items() if axis != "guidance"}
            for point in self._points
            if model_at(own, point) == cell.model
        ]

    # teachers and their pairs

    @property
    def teacher(self) -> Teacher:
        """The experiment's own teacher, with which everything is evaluated."""
        return Teacher(**self.experiment.teacher.model_dump())

    @cached_property
    def _train_counts(self) -> dict[Teacher, int]:
        """The most pairs per seed that any trial learns from, by teacher; the own teacher first."""
        e = self.experiment
        found = {self.teacher: e.pairs.train}
        proposed = {
            key: axis
            for key, axis in e.search.optuna.items()
            if key.startswith(("teacher.", "pairs.")) and isinstance(axis, tuple)
        }
        for point in self._points:
            for values in itertools.product(*proposed.values()):
                at = point | dict(zip(proposed, values, strict=True))
                teacher, count = self._teacher_at(at), self._train_at(at)
                found[teacher] = max(count, found.get(teacher, 0))
        return found

    @property
    def teachers(self) -> list[Teacher]:
        """Every teacher that a trial may learn from, the experiment's own first."""
        return list(self._train_counts)

    def _teacher_at(self, point: Point) -> Teacher:
        given = {
            key.partition(".")[2]: check_value("default", key, value)
            for key, value in point.items()
            if key.startswith("teacher.")
        }
        return Teacher(**{**self.experiment.teacher.model_dump(), **given})

    def _train_at(self, point: Point) -> int:
        count = point.get("pairs.train", self.experiment.pairs.train)
        return int(check_value("default", "pairs.train", count))

    @cached_property
    def _memo(self) -> dict[Any, Any]:
        return {}

    def teacher_meta(self, model: ModelSettings, teacher: Teacher | None = None) -> dict[str, Any]:
        """Everything that the pairs of a teacher depend on; the own one's if not given."""
        e = self.experiment
        found = self.model_identity(model)
        weights, conditioning = found.pop("weights"), found.pop("conditioning")
        options = {k: v for k, v in found.items() if k not in HOW}
        made_by = {"model": digest(options), "seed": e.seed, "hash": weights}
        made_by |= {"conditioning": conditioning, "space": e.loss_space}
        return made_by | self.portable(asdict(teacher or self.teacher))

    def teacher_key(self, model: ModelSettings, teacher: Teacher | None = None) -> str:
        """Folder of the pairs of a teacher; of the experiment's own if not given."""
        at = ("teacher", model.label, teacher or self.teacher)
        if at not in self._memo:
            self._memo[at] = digest(self.teacher_meta(model, teacher))
        return self._memo[at]

    @property
    def valid_range(self) -> ranges.Range:
        """Samples every member is validated on."""
        return ranges.valid_range(self.experiment.pairs.valid)

    def train_range(self, seed: int, count: int | None = None) -> ranges.Range:
        """Samples the members of a seed train on; as many as `pairs.train` says if not given."""
        return ranges.train_range(seed, count or self.experiment.pairs.train)

    @property
    def eval_ranges(self) -> list[ranges.Range]:
        """Fresh samples of the evaluation, a range for each repeat."""
        evaluate = self.experiment.evaluate
        return [ranges.eval_range(r, evaluate.samples) for r in range(evaluate.repeats)]

    @property
    def eval_range(self) -> ranges.Range:
        """Fresh samples of the first evaluation set."""
        return self.eval_ranges[0]

    def sample_ranges(self, teacher: Teacher | None = None) -> list[ranges.Range]:
        """The ranges of pairs that a teacher makes; only the own one makes evaluation samples."""
        own = teacher is None or teacher == self.teacher
        count = self._train_counts[teacher or self.teacher]
        seeds = range(self.experiment.search.members.seeds)
        found = [self.valid_range, *(ranges.train_range(seed, count) for seed in seeds)]
        found += self.eval_ranges if own else []
        return [(start, stop) for start, stop in found if start < stop]

    def shards(self, teacher: Teacher | None = None) -> list[ranges.Range]:
        """Index ranges of the teacher's shards in an empty folder; none spans two ranges."""
        size = self.experiment.resources.shard
        return [tile for span in self.sample_ranges(teacher) for tile in ranges.tiles(span, size)]

    # trials and baselines

    def trial(self, cell: Cell, values: Point) -> TrialSpec:
        """Resolve the values of the axes into a trial with all of its members."""
        e = self.experiment
        others = {k: v for k, v in values.items() if v is not None and k != "guidance"}
        start, distance = others.pop("start", None), others.pop("distance", e.distance)
        teacher, train = self._teacher_at(others), self._train_at(others)
        learn = {key: value for key, value in others.items() if "." not in key}
        own = {"checkpointing": "always"} if cell.model.recompute else {}
        config = make_config(**{**e.learn, **learn, **own, "seed": e.seed})
        procedure, later = procedures.get(config.procedure), cell.model.model not in self.at_t_max
        names = e.search.members.starts or procedure.starts_for(config, later)
        chosen = list(names) if start is None else [start]
        settings = {
            "learn": asdict(config),
            "distance": distance,
            "distance_options": e.distance_options(distance),
            "teacher": asdict(teacher),
            "pairs": {"train": train, "valid": e.pairs.valid},
        }
        if procedure.family:
            settings[NFES] = sorted(e.nfe)
        return self.spec(cell, settings, list(itertools.product(self._seeds, chosen)))

    @property
    def _seeds(self) -> range:
        return range(self.experiment.search.members.seeds)

    def spec(
        self, cell: Cell, settings: dict[str, Any], members: Iterable[Sequence[Any]]
    ) -> TrialSpec:
        """A trial from its resolved settings and its members (seed, start)."""
        procedure = settings["learn"]["procedure"]
        shared = {
            "settings": self.portable(settings),
            "solver": self.portable(cell.solver),
            "teacher": self.teacher_key(cell.model, Teacher(**settings["teacher"])),
            "versions": {"procedure": procedures.version(procedure)}
            | self._solver_version(cell.solver),
        }
        key = digest(shared | {"nfe": cell.nfe})
        found = tuple((int(seed), str(start)) for seed, start in members)
        named = lambda name: tuple(
            digest([name, seed, self.portable(start), start_version(start)])
            for seed, start in found
        )
        if not nfes_of(settings):
            return TrialSpec(cell, settings, key, found, named(key))
        family = digest(shared)
        return TrialSpec(cell, settings, key, found, named(key), family, named(family))

    def _solver_version(self, solver: str) -> dict[str, Any]:
        """The version of a registered solver, for keys."""
        plain = solver.partition("?")[0].removesuffix("-bh2")
        version = solvers.version(plain) if plain in solvers else None
        return {} if version is None else {"solver": version}

    def baseline_key(
        self, cell: Cell, name: str, distance: str, teacher: Teacher | None = None
    ) -> str:
        """Row key of a hand-made grid of a cell, measured in a distance against a teacher."""
        e = self.experiment
        sees_pairs = looks_at_pairs(name)
        return "baseline-" + digest(
            {
                "solver": self.portable(cell.solver),
                "nfe": cell.nfe,
                "start": self.portable(name),
                "distance": self.portable(distance),
                "distance_options": self.portable(e.distance_options(distance)),
                "valid": e.pairs.valid,
                "train": e.pairs.train if sees_pairs else None,
                "teacher": self.teacher_key(cell.model, teacher),
                "versions": {**self._solver_version(cell.solver), "start": start_version(name)},
            }
        )

    def baselines(self, cell: Cell) -> list[tuple[str, str, str, Teacher]]:
        """(row key, grid, distance, teacher) of every hand-made grid of a cell."""
        e = self.experiment
        return [
            (self.baseline_key(cell, name, distance, teacher), name, distance, teacher)
            for teacher in self.teachers
            for name in e.baselines
            for distance in e.distances
        ]

    def member_labels(self) -> list[tuple[int, str]]:
        """(seed, label of the start) of every member that any trial may have."""
        e = self.experiment
        names: list[str] = list(e.search.members.starts or ())
        if not names:
            every = (start for p in e.procedures for start in procedures.get(p).starts)
            names = [name for start in every for name in (start, grid_name(start))]
        names += [str(value) for value in self._axis_values("start") if value is not None]
        unique = dict.fromkeys(map(label, names))
        return [(seed, start) for seed in self._seeds for start in unique]

    def _axis_values(self, axis: str) -> list[Any]:
        _, values = self.experiment.axes.get(axis, ("", ()))
        return list(values) if isinstance(values, tuple) else []
