"""The YAML of a sweep as models that validate themselves. Every key has a default but `models`,
`solvers` and `nfe`.

What is checked here needs no model and no cluster: names, types, signs, duplicates, what a solver
needs. The rest (does the file exist, are there so many GPUs) is checked when a sweep starts, before
it writes anything."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
    Count,
    CountOrZero,
    Name,
    Nfe,
    NotNegative,
    Number,
    Pixels,
    Positive,
    Retries,
    Rounds,
    Seconds,
    Seed,
    SeedCount,
    check_label,
    check_size,
)

Values = Annotated[tuple[Value, ...], Field(min_length=1)]


class Strict(BaseModel):
    """Unknown keys are errors; values are not coerced across kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ModelSettings(Strict):
    """A model and how it is used. `model` is a name of `ld3_dist.models`; the rest are its options.

    recompute: `learn: {checkpointing: always}` for this model alone.
    """

    model: str
    name: Name | None = None
    conditional: bool | None = None
    guidance: NotNegative | None = None
    prompts: str | None = None
    negative_prompt: str = ""
    classes: str | None = None
    size: tuple[Pixels, Pixels] | None = None
    shift: Positive | None = None
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    variant: str | None = None
    channels_last: bool = False
    compile: bool = False
    recompute: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _named(self) -> ModelSettings:
        check_label(self.label)
        return self

    @property
    def label(self) -> str:
        """Name in cells and tables."""
        if self.name:
            return self.name
        parts = [label(self.model)]
        if self.conditional is False:
            parts.append("uncond")
        if self.guidance is not None and self.guidance != 1:
            parts.append(f"w{self.guidance:g}")
        return "-".join(parts)


class Teacher(Strict):
    """The precise solver whose samples are imitated."""

    solver: SolverName = "unipc-3"
    nfe: Nfe = 20
    start: StartName = "karras"


class Lpips(Strict):
    """LPIPS.

    trunk: weights file of its network, by default in torch.hub's folder.  upsample: enlarge images
    too small for it."""

    trunk: str | None = None
    upsample: bool = False


class PairCounts(Strict):
    """How many pairs each member trains on, and how many all of them are validated on."""

    train: Annotated[Count, Field(ge=2)] = 50
    valid: Count = 50


class Range(Strict):
    """A continuous axis of a search."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}")
        if self.low < 0 or (self.log and self.low <= 0):
            raise ValueError(
                f"low = {self.low:g}: must be "
                f"{'positive for log: true' if self.log else 'at least 0'}"
            )
        return self


class Members(Strict):
    """What is packed into one trial: every seed with every start.

    starts: grids that learning begins from; the procedure's own if not given.
    """

    seeds: SeedCount = 3
    starts: Annotated[tuple[StartName, ...], Field(min_length=1)] | None = None

    @field_validator("starts")
    @classmethod
    def _distinct(cls, starts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if starts:
            unique("starts", tuple(map(label, starts)))
        return starts


class Asha(Strict):
    """Asynchronous successive halving: after `grace`, grace * reduction, grace * reduction^2 …
    epochs a trial goes on only while it is among the best 1 / reduction of its cell's trials there;
    see `ld3_dist.tasks.rungs`."""

    grace: Count = 8
    reduction: Annotated[int, Field(ge=2)] = 3


class Search(Strict):
    """What is tried in each cell: every point of `grid`, `rounds` times, the `optuna` axes proposed
    by its sampler.

    sampler: tpe, random, or qmc.
    asha: stop bad trials early. Off by default: which trials stop depends on timing, so that a
        resumed sweep need not end with the table of an uninterrupted one."""

    grid: dict[str, Values] = {}
    optuna: dict[str, Range | Values] = {}
    rounds: Rounds = 1
    sampler: Literal["tpe", "random", "qmc"] = "tpe"
    members: Members = Members()
    asha: Asha | None = None

    @property
    def axes(self) -> dict[str, tuple[str, Range | tuple[Value, ...]]]:
        """Every axis by its short name: its full name in the YAML, and its values or range."""
        grid = {key: (f"search.grid.{key}", axis) for key, axis in self.grid.items()}
        return grid | {key: (f"search.optuna.{key}", axis) for key, axis in self.optuna.items()}


class Evaluate(Strict):
    """Fresh samples for the best trial and the baselines of every cell.

    extractor: "auto" (what the model comes with), "none", or a name of `ld3_dist.metrics`.
    reference: "auto" (the model's data if it has any, else the teacher), "teacher", or a statistics
    file."""

    samples: CountOrZero = 1000
    extractor: str = "auto"
    reference: str = "auto"
    metrics: tuple[str, ...] | None = None
    pictures: Annotated[CountOrZero, Field(le=64)] = 8


class Report(Strict):
    """The page of results.

    figures: names of figures, also python:FILE.py:NAME; all that are registered if not given.
    """

    figures: tuple[str, ...] | None = None


class Resources(Strict):
    """What a cluster gives: per trial, per teacher and evaluation actor. GPUs may be fractions 1,
    1/2, 1/3 …

    callbacks: trackers that follow the trials.
    checkpoint_seconds: a trial keeps what it needs to go on at most so often; 0 is after every
    epoch."""

    cpus_per_trial: Positive = 1
    gpus_per_trial: NotNegative | Literal["auto"] = "auto"
    cpus_per_actor: Positive = 1
    gpus_per_actor: NotNegative | Literal["auto"] = "auto"
    actors: Count | Literal["auto"] = "auto"
    concurrent_trials: Count | None = None
    batch: Count = 250
    shard: Count = 100
    retries: Retries = 3
    deadline: Seconds = 3600.0
    checkpoint_seconds: NotNegative = 60.0
    callbacks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


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
    learn: dict[str, Value] = {}
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
        if key == "distance" and self.search.optuna and self.search.sampler == "tpe":
            raise ValueError(
                f"{name} with search.optuna and the sampler 'tpe': losses in two distances are not "
                "comparable, so that Optuna would follow their scales; use the sampler 'random' or "
                "'qmc', or one experiment for each distance"
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
