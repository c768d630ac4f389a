"""The YAML of a sweep as models that validate themselves.

Every key has a default but `models`, `solvers` and `nfe`. The checks here need no model and no
cluster: names, types, signs, duplicates, the fewest evaluations of a solver. The rest (missing
files, too few GPUs) is checked when a sweep starts, before it writes anything.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..core.distance import distance_entry
from ..core.learning.procedure import make_config, procedures
from ..core.solver import make_solver
from ..core.user_code import PREFIX, label
from ..metrics.extractors import extractors
from ..metrics.of_samples import distances_among
from ..metrics.scores import find_metric, metric_columns
from .axes import (
    GRID_ONLY,
    INCOMPARABLE,
    OTHER_AXES,
    DistanceName,
    SolverName,
    StartName,
    Value,
    check_value,
    is_number,
    is_setting,
    lacks,
    unique,
)
from .limits import (
    Name,
    Nfe,
    OnlyNumber,
    Seed,
    check_shards,
    check_size,
)
from .scaling import MOST, scaled
from .sections import (
    Ablate,
    BestPer,
    Evaluate,
    Lpips,
    ModelSettings,
    PairCounts,
    Range,
    Report,
    Resources,
    Search,
    Strict,
    Teacher,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of sweeps, which become names of folders."""

Axis = Range | tuple[Value, ...]
"""A range that a sampler draws from, or the values of an axis."""


class Experiment(Strict):
    """A sweep: models x solvers x NFE are its cells; each cell has a search of its own."""

    name: Annotated[Name, Field(pattern=NAME_PATTERN)] = "sweep"
    """Name of the sweep; results go to runs/NAME if no folder is given."""
    seed: Seed = 0
    """Seed of noise, pairs and proposals."""
    scale: Annotated[int, OnlyNumber, Field(ge=1, le=MOST, exclude=True)] = 1
    """Multiplies pairs.train, pairs.valid and evaluate.samples: the same questions, more data."""
    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    """The models that schedules are learned for."""
    solvers: Annotated[tuple[SolverName, ...], Field(min_length=1)]
    """Student solvers."""
    nfe: Annotated[tuple[Nfe, ...], Field(min_length=1)]
    """Numbers of network evaluations of a sample."""
    teacher: Teacher = Teacher()
    """The precise solver whose samples are imitated."""
    pairs: PairCounts = PairCounts()
    """Numbers of teacher pairs."""
    distance: DistanceName = "l2"
    """Distance to the teacher's samples that learning makes small."""
    lpips: Lpips = Lpips()
    """Options of the distances `lpips-…`."""
    loss_space: Literal["image", "latent"] = "image"
    """Compare decoded images or latents, for models in a latent space."""
    learn: dict[str, Value] = Field({})
    """Settings of learning that are fixed; the procedure's own defaults for the rest."""
    search: Search = Search()
    """Settings that are searched, seeds and starts."""
    ablate: Ablate | None = None
    """Factors around a base, instead of search.grid."""
    baselines: Annotated[tuple[StartName, ...], Field(min_length=1)] = (
        "uniform",
        "quadratic",
        "log_snr",
        "karras",
    )
    """Hand-made grids that learned schedules are compared with."""
    evaluate: Evaluate = Evaluate()
    """Scores on fresh samples."""
    report: Report = Report()
    """The page of results."""
    resources: Resources = Resources()
    """Resources of trials and actors, batches, retries."""

    @model_validator(mode="before")
    @classmethod
    def _scaled(cls, data: Any) -> Any:
        return scaled(data)

    @model_validator(mode="after")
    def _whole(self) -> Experiment:
        unique("models", tuple(m.label for m in self.models))
        self._check_size()
        unique("solvers", tuple(map(label, self.solvers)))
        unique("nfe", self.nfe)
        unique("baselines", tuple(map(label, self.baselines)))
        self._check_places()
        self._check_learning()
        self._check_best_per()
        self._check_asha()
        if any(model.recompute for model in self.models):
            self._check_recompute()
        self._check_distances()
        self._check_names()
        for solver in self.solvers:
            for nfe in self.nfe:
                least = make_solver(solver).stages
                if nfe < least:
                    raise ValueError(
                        f"nfe: {nfe} evaluations are too few for {solver}, a step of which takes "
                        f"{least}"
                    )
        return self

    @property
    def axes(self) -> dict[str, tuple[str, Axis]]:
        """Every axis by its short name: its full name in the YAML, and its values or range.

        An axis of `ablate` has the base's value among its values.
        """
        found: dict[str, tuple[str, Axis]] = {}
        if self.ablate is not None:
            for key, value in self.ablate.base.items():
                found[key] = (f"ablate.base.{key}", (value,))
            for key, levels in self.ablate.vary.items():
                base = (self.ablate.base[key],) if key in self.ablate.base else ()
                others = tuple(level for level in levels if level not in base)
                found[key] = (f"ablate.vary.{key}", (*base, *others))
        found |= {key: (f"search.grid.{key}", axis) for key, axis in self.search.grid.items()}
        return found | {
            key: (f"search.optuna.{key}", axis) for key, axis in self.search.optuna.items()
        }

    @property
    def evaluated_rows(self) -> Literal["best", "all"] | BestPer:
        """The learned rows that are evaluated: what `evaluate.rows` says, or its default."""
        return self.evaluate.rows or ("best" if self.ablate is None else "all")

    @property
    def base_procedure(self) -> str:
        """The procedure of an ablation's base, and of an experiment that does not search it."""
        base = {} if self.ablate is None else self.ablate.base
        return str(base.get("procedure", self.learn.get("procedure", "default")))

    @property
    def procedures(self) -> tuple[str, ...]:
        """Every procedure that a trial may use."""
        fixed = str(self.learn.get("procedure", "default"))
        _, axis = self.axes.get("procedure", ("", (fixed,)))
        named = () if isinstance(axis, Range) else tuple(map(str, axis))
        varied = self.ablate is not None and "procedure" in self.ablate.vary
        if varied and self.ablate is not None and "procedure" not in self.ablate.base:
            named = (fixed, *named)
        return tuple(dict.fromkeys(named))

    def _check_size(self) -> None:
        """Refuse more points and trials than a sweep can list, from their counts alone."""
        if self.ablate is None:
            counts = {key: len(values) for key, values in self.search.grid.items()}
            points, where = math.prod(counts.values()), "search.grid"
        else:
            base, where = self.ablate.base, "ablate.vary"
            counts = {
                key: len({*values, *((base[key],) if key in base else ())})
                for key, values in self.ablate.vary.items()
            }
            sizes = counts.values()
            points = math.prod(sizes) if self.ablate.full else 1 + sum(sizes)
        cells = len(self.models) * len(self.solvers) * len(self.nfe)
        check_size(cells, counts, points, self.search.rounds, where)
        pairs, evaluate = self.pairs, self.evaluate
        learned_from = pairs.train * self.search.members.seeds + pairs.valid
        fresh = evaluate.samples * evaluate.repeats
        check_shards(learned_from + fresh, self.resources.shard)

    def _check_places(self) -> None:
        """Refuse an axis that stands in two places, and sections that exclude each other."""
        if self.ablate is not None and self.search.grid:
            key = next(iter(self.search.grid))
            raise ValueError(
                f"search.grid.{key} beside ablate: an ablation has its own points; move the axis "
                f"to ablate.vary.{key}, or remove ablate"
            )
        ablated = {} if self.ablate is None else {**self.ablate.base, **self.ablate.vary}
        for key in self.search.optuna:
            if key in self.search.grid:
                raise ValueError(
                    f"axis {key!r} stands both in search.grid and in search.optuna: keep one"
                )
            if key in ablated:
                raise ValueError(
                    f"axis {key!r} stands both in ablate and in search.optuna: keep one"
                )
            if key in GRID_ONLY:
                raise ValueError(
                    f"search.optuna.{key}: makes cells of its own, in which a sampler cannot "
                    f"choose; move it to search.grid.{key}"
                )

    def _check_learning(self) -> None:
        """Every setting, fixed or searched, is one of every procedure it may meet."""
        place, searched = self.axes.get("procedure", ("learn.procedure", ()))
        if isinstance(searched, Range):
            raise ValueError(f"{place}: low and high fit numbers only; give a list of values")
        for key, value in self.learn.items():
            if key in self.axes:
                other = self.axes[key][0]
                raise ValueError(
                    f"learn.{key} is fixed to {value!r} and searched as {other}: keep one"
                )
        for procedure in self.procedures:
            _check("default", "procedure", procedure, place)
            if "procedure" in self.search.optuna and procedures.get(procedure).family:
                raise ValueError(
                    f"{place}: {procedure} learns all cells of a model and a solver at once, which "
                    "a sampler of one cell cannot propose; move it to search.grid.procedure"
                )
        for procedure in self.procedures:
            met = f"with {place} = {procedure!r}, " if searched else ""
            for key, value in self.learn.items():
                _check(procedure, key, value, f"{met}learn.{key}")
            for key, (name, axis) in self._written_axes():
                if self._meets(procedure, key):
                    self._check_axis(procedure, key, f"{met}{name}", axis)

    def _meets(self, procedure: str, key: str) -> bool:
        """False for a factor of an ablation that this level of `procedure` leaves out."""
        if self.ablate is None or self.ablate.full or key in self.search.optuna:
            return True
        return procedure == self.base_procedure or not lacks(procedure, key)

    def _written_axes(self) -> list[tuple[str, tuple[str, Axis]]]:
        """Every axis as it is written, with the base and the levels of an ablation apart."""
        if self.ablate is None:
            return list(self.axes.items())
        found: list[tuple[str, tuple[str, Axis]]] = []
        for key, value in self.ablate.base.items():
            found.append((key, (f"ablate.base.{key}", (value,))))
        for key, levels in self.ablate.vary.items():
            found.append((key, (f"ablate.vary.{key}", levels)))
        return found + [(key, self.axes[key]) for key in self.search.optuna]

    def _check_axis(self, procedure: str, key: str, name: str, axis: Axis) -> None:
        if not isinstance(axis, Range):
            for value in unique(name, axis):
                _check(procedure, key, value, name)
            return
        if key in OTHER_AXES or (is_setting(procedure, key) and not is_number(procedure, key)):
            raise ValueError(f"{name}: low and high fit numbers only; give a list of values")
        _check(procedure, key, axis.low, name)
        _check(procedure, key, axis.high, name)

    def _check_best_per(self) -> None:
        rows = self.evaluate.rows
        if not isinstance(rows, BestPer):
            return
        unique("evaluate.rows.best_per", rows.best_per)
        for key in rows.best_per:
            if key not in self.axes:
                known = ", ".join(self.axes) or "none"
                raise ValueError(
                    f"evaluate.rows.best_per: {key!r} is not an axis of this experiment (its axes: "
                    f"{known}); add it to search.grid or ablate.vary, or remove it"
                )

    def _check_distances(self) -> None:
        for key in self.search.optuna if self.search.sampler == "tpe" else ():
            if key in INCOMPARABLE:
                what = "distances" if key == "distance" else "teachers"
                raise ValueError(
                    f"search.optuna.{key} with the sampler 'tpe': losses in two {what} are not "
                    "comparable, so that Optuna would follow their scales; move it to "
                    f"search.grid.{key}, or use the sampler 'random' or 'qmc'"
                )
        entries = {name: distance_entry(name) for name in self.every_distance}
        for name, entry in entries.items():
            if self.loss_space == "latent" and entry.space == "image":
                raise ValueError(
                    f"loss_space = 'latent', but {name} compares images: use l2, l1 or "
                    "loss_space: image"
                )
        trunks = [name for name, entry in entries.items() if entry.trunk]
        if self.lpips.trunk and len(trunks) > 1:
            raise ValueError(
                f"lpips.trunk = {self.lpips.trunk!r}: one file cannot serve {', '.join(trunks)}; "
                "remove it"
            )

    def _check_names(self) -> None:
        """Extractors and metrics are known; figures are looked at when the page is written."""
        name = self.evaluate.extractor
        extractors.get(name if name.startswith(PREFIX) else name.partition(":")[0])
        names = self.evaluate.metrics or ()
        for metric in names:
            find_metric(metric)
        unique("evaluate.metrics", tuple(c for metric in names for c in metric_columns(metric)))

    def _check_recompute(self) -> None:
        fixed = self.learn.get("checkpointing", "always")
        _, axis = self.axes.get("checkpointing", ("", (fixed,)))
        if axis != ("always",):
            i = [model.recompute for model in self.models].index(True)
            raise ValueError(
                f"models.{i}.recompute = true, but learn.checkpointing = {axis!r}: keep one"
            )

    def _check_asha(self) -> None:
        asha, longest = self.search.asha, self._most_epochs()
        if asha and asha.grace >= longest:
            raise ValueError(
                f"search.asha.grace = {asha.grace}: trials have at most {longest} epochs, so that "
                "none could be stopped early; make it smaller or remove search.asha"
            )

    def _most_epochs(self) -> int:
        """Epochs of the longest trial."""
        if "epochs" in self.axes:
            _, axis = self.axes["epochs"]
            return int(axis.high if isinstance(axis, Range) else max(map(int, axis)))
        learn = {key: value for key, value in self.learn.items() if key != "procedure"}
        return max(make_config(procedure, **learn).epochs for procedure in self.procedures)

    @property
    def distances(self) -> tuple[str, ...]:
        """Every distance a trial may use, the experiment's own first."""
        _, axis = self.axes.get("distance", ("", ()))
        searched = () if isinstance(axis, Range) else map(str, axis)
        return tuple(dict.fromkeys([self.distance, *searched]))

    @property
    def every_distance(self) -> tuple[str, ...]:
        """The distances of trials, and those that fresh samples are measured by beside them."""
        return tuple(dict.fromkeys([*self.distances, *self.further_distances]))

    @property
    def further_distances(self) -> list[str]:
        """The distances that fresh samples are measured by beside the experiment's own."""
        return distances_among(self.evaluate.metrics or ())

    def distance_options(self, name: str) -> dict[str, Any]:
        """The options that a distance depends on, for `make_distance` and for keys."""
        options = self.lpips.model_dump()
        return {key: options[key] for key in distance_entry(name).options if key in options}


def _check(procedure: str, key: str, value: Value, name: str) -> None:
    """Check a value of a setting; the message calls the setting `name`."""
    try:
        check_value(procedure, key, value)
    except ValueError as error:
        text = str(error).removeprefix(f"learn.{key}")
        joint = "" if text.startswith((" = ", ": ")) else ": "
        raise ValueError(f"{name}{joint}{text}") from None
