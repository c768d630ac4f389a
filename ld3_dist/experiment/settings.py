"""The YAML of a sweep as models that validate themselves. Every key has a default but `models`,
`solvers` and `nfe`.

What is checked here needs no model and no cluster: names, types, signs, duplicates, what a solver
needs. The rest (does the file exist, are there so many GPUs) is checked when a sweep starts, before
it writes anything."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..core.distance import distance_entry
from ..core.learning.procedure import make_config
from ..core.solver import make_solver
from ..core.user_code import PREFIX, label
from ..metrics.extractors import extractors
from ..metrics.scores import metric_columns, metrics
from .axes import (
    OTHER_AXES,
    DistanceName,
    SolverName,
    StartName,
    Value,
    check_value,
    is_number,
    is_setting,
    unique,
)
from .limits import (
    Name,
    Nfe,
    Seed,
    check_shards,
    check_size,
)
from .sections import (
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


class Experiment(Strict):
    """A sweep: models x solvers x NFE are its cells; each cell has a search of its own."""

    name: Annotated[Name, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "sweep"
    seed: Seed = 0
    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    solvers: Annotated[tuple[SolverName, ...], Field(min_length=1)]
    nfe: Annotated[tuple[Nfe, ...], Field(min_length=1)]
    teacher: Teacher = Teacher()
    pairs: PairCounts = PairCounts()
    distance: DistanceName = "l2"
    lpips: Lpips = Lpips()
    loss_space: Literal["image", "latent"] = "image"
    learn: dict[str, Value] = Field({})
    search: Search = Search()
    baselines: Annotated[tuple[StartName, ...], Field(min_length=1)] = (
        "uniform",
        "quadratic",
        "log_snr",
        "karras",
    )
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _whole(self) -> Experiment:
        unique("models", tuple(m.label for m in self.models))
        cells = len(self.models) * len(self.solvers) * len(self.nfe)
        check_size(cells, self.search.grid, self.search.rounds)
        seeds, pairs = self.search.members.seeds, self.pairs
        samples = pairs.train * seeds + pairs.valid + self.evaluate.samples
        check_shards(samples, self.resources.shard)
        unique("solvers", tuple(map(label, self.solvers)))
        unique("nfe", self.nfe)
        unique("baselines", tuple(map(label, self.baselines)))
        self._check_learning()
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
    def procedures(self) -> tuple[str, ...]:
        """Every procedure that a trial may use."""
        fixed = str(self.learn.get("procedure", "default"))
        _, axis = self.search.axes.get("procedure", ("", (fixed,)))
        return () if isinstance(axis, Range) else tuple(map(str, axis))

    def _check_learning(self) -> None:
        """Every setting, fixed or searched, is one of every procedure it may meet."""
        place, searched = self.search.axes.get("procedure", ("learn.procedure", ()))
        if isinstance(searched, Range):
            raise ValueError(f"{place}: low and high fit numbers only; give a list of values")
        for key, value in self.learn.items():
            if key in self.search.axes:
                other = self.search.axes[key][0]
                raise ValueError(
                    f"learn.{key} is fixed to {value!r} and searched as {other}: keep one"
                )
        for procedure in self.procedures:
            _check("default", "procedure", procedure, place)
        for procedure in self.procedures:
            met = f"with {place} = {procedure!r}, " if searched else ""
            for key, value in self.learn.items():
                _check(procedure, key, value, f"{met}learn.{key}")
            for key, (name, axis) in self.search.axes.items():
                self._check_axis(procedure, key, f"{met}{name}", axis)

    def _check_axis(
        self, procedure: str, key: str, name: str, axis: Range | tuple[Value, ...]
    ) -> None:
        if key in self.search.grid and key in self.search.optuna:
            raise ValueError(
                f"axis {key!r} stands both in search.grid and in search.optuna: keep one"
            )
        if not isinstance(axis, Range):
            for value in unique(name, axis):
                _check(procedure, key, value, name)
            return
        if key in OTHER_AXES or (is_setting(procedure, key) and not is_number(procedure, key)):
            raise ValueError(f"{name}: low and high fit numbers only; give a list of values")
        _check(procedure, key, axis.low, name)
        _check(procedure, key, axis.high, name)

    def _check_distances(self) -> None:
        if "distance" in self.search.axes and self.search.optuna and self.search.sampler == "tpe":
            raise ValueError(
                f"{self.search.axes['distance'][0]} with search.optuna and the sampler 'tpe': "
                "losses in two distances are not comparable, so that Optuna would follow their "
                "scales; use the sampler 'random' or 'qmc', or one experiment for each distance"
            )
        entries = {name: distance_entry(name) for name in self.distances}
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
            metrics.get(metric)
        unique("evaluate.metrics", tuple(c for metric in names for c in metric_columns(metric)))

    def _check_recompute(self) -> None:
        fixed = self.learn.get("checkpointing", "always")
        _, axis = self.search.axes.get("checkpointing", ("", (fixed,)))
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
        if "epochs" in self.search.axes:
            _, axis = self.search.axes["epochs"]
            return int(axis.high if isinstance(axis, Range) else max(map(int, axis)))
        learn = {key: value for key, value in self.learn.items() if key != "procedure"}
        return max(make_config(procedure, **learn).epochs for procedure in self.procedures)

    @property
    def distances(self) -> tuple[str, ...]:
        """Every distance a trial may use, the experiment's own first."""
        _, axis = self.search.axes.get("distance", ("", ()))
        searched = () if isinstance(axis, Range) else map(str, axis)
        return tuple(dict.fromkeys([self.distance, *searched]))

    def distance_options(self, name: str) -> dict[str, Any]:
        """What else a distance depends on, for `make_distance` and for keys."""
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
