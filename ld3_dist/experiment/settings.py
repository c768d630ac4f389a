"""The YAML of a sweep as models that validate themselves. Every key has a default but `models`,
`solvers` and `nfe`.

What is checked here needs no model and no cluster: names, types, signs, duplicates, what a solver
needs. The rest (does the file exist, are there so many GPUs) is checked when a sweep starts, before
it writes anything."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ..core.errors import unknown
from ..core.learning.learn import LearnConfig
from ..core.solver import make_solver
from .axes import (
    LEARN_FIELDS,
    SEARCHABLE,
    DistanceName,
    SolverName,
    StartName,
    Value,
    check_axis_value,
    check_combinations,
    switches,
    unique,
)

Count = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Values = Annotated[tuple[Value, ...], Field(min_length=1)]


class Strict(BaseModel):
    """Unknown keys are errors; values are not coerced across kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ModelSettings(Strict):
    """A model and how it is used. `model` is a name of `ld3_dist.models`; the rest are its options.

    recompute: `learn: {checkpointing: on}` for this model alone.
    """

    model: str
    name: str | None = None
    conditional: bool | None = None
    guidance: Scale | None = None
    prompts: str | None = None
    negative_prompt: str = ""
    classes: str | None = None
    size: tuple[Count, Count] | None = None
    shift: Annotated[float, Field(gt=0)] | None = None
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    channels_last: bool = False
    compile: bool = False
    recompute: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @property
    def label(self) -> str:
        """Name in cells and tables."""
        if self.name:
            return self.name
        parts = [self.model]
        if self.conditional is False:
            parts.append("uncond")
        if self.guidance is not None and self.guidance != 1:
            parts.append(f"w{self.guidance:g}")
        return "-".join(parts)


class Teacher(Strict):
    """The precise solver whose samples are imitated."""

    solver: SolverName = "unipc-3"
    nfe: Count = 20
    start: StartName = "karras"


class Lpips(Strict):
    """LPIPS.

    trunk: weights file of its network, by default in torch.hub's folder.  upsample: enlarge images
    too small for it."""

    trunk: str | None = None
    upsample: bool = False


class PairCounts(Strict):
    """How many pairs each member trains on, and how many all of them are validated on."""

    train: Annotated[int, Field(ge=2)] = 50
    valid: Count = 50


class Range(Strict):
    """A continuous axis of a search."""

    low: float
    high: float
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
    """What is packed into one trial: every seed with every start."""

    seeds: Count = 3
    starts: Annotated[tuple[StartName, ...], Field(min_length=1)] = ("log_snr",)

    @field_validator("starts")
    @classmethod
    def _distinct(cls, starts: tuple[str, ...]) -> tuple[str, ...]:
        return unique("starts", starts)


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

    grid: Annotated[dict[str, Values], AfterValidator(switches)] = {}
    optuna: Annotated[dict[str, Range | Values], AfterValidator(switches)] = {}
    rounds: Count = 1
    sampler: Literal["tpe", "random", "qmc"] = "tpe"
    members: Members = Members()
    asha: Asha | None = None

    @model_validator(mode="after")
    def _axes(self) -> Search:
        for place, axes in (("grid", self.grid), ("optuna", self.optuna)):
            for key, axis in axes.items():
                if key not in SEARCHABLE:
                    raise unknown(f"axis of search.{place}", key, SEARCHABLE)
                if key in self.grid and key in self.optuna:
                    raise ValueError(f"axis {key!r} stands both in grid and in optuna: keep one")
                values = [axis.low, axis.high] if isinstance(axis, Range) else list(axis)
                if not isinstance(axis, Range):
                    unique(f"{place}.{key}", tuple(axis))
                if isinstance(axis, Range) and type(getattr(LearnConfig(), key, "")) not in (
                    float,
                    int,
                ):
                    raise ValueError(
                        f"{place}.{key}: low and high fit numbers only; give a list of values"
                    )
                for value in values:
                    try:
                        check_axis_value(key, value)
                    except ValueError as error:
                        raise ValueError(f"{place}.{key}: {error}") from None
        return self

    @property
    def listed(self) -> dict[str, tuple[Value, ...]]:
        """The axes that are lists of values, by their full names."""
        axes = {f"search.grid.{k}": v for k, v in self.grid.items()}
        return axes | {
            f"search.optuna.{k}": v for k, v in self.optuna.items() if not isinstance(v, Range)
        }


class Evaluate(Strict):
    """Fresh samples for the best trial and the baselines of every cell.

    extractor: "auto" (what the model comes with), "none", or a name of `ld3_dist.metrics`.
    reference: "auto" (the model's data if it has any, else the teacher), "teacher", or a statistics
    file."""

    samples: Annotated[int, Field(ge=0)] = 1000
    extractor: str = "auto"
    reference: str = "auto"
    pictures: Annotated[int, Field(ge=0, le=64)] = 8


class Resources(Strict):
    """What a cluster gives: per trial, per teacher and evaluation actor. GPUs may be fractions 1,
    1/2, 1/3 …

    callbacks: trackers that follow the trials.
    checkpoint_seconds: a trial keeps what it needs to go on at most so often; 0 is after every
    epoch."""

    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    gpus_per_trial: Scale | Literal["auto"] = "auto"
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1
    gpus_per_actor: Scale | Literal["auto"] = "auto"
    actors: Count | Literal["auto"] = "auto"
    concurrent_trials: Count | None = None
    batch: Count = 250
    shard: Count = 100
    retries: Annotated[int, Field(ge=0)] = 3
    deadline: Annotated[float, Field(gt=0)] = 3600.0
    checkpoint_seconds: Scale = 60.0
    callbacks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


class Experiment(Strict):
    """A sweep: models x solvers x NFE are its cells; each cell has a search of its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "sweep"
    seed: Annotated[int, Field(ge=0)] = 0
    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    solvers: Annotated[tuple[SolverName, ...], Field(min_length=1)]
    nfe: Annotated[tuple[Count, ...], Field(min_length=1)]
    teacher: Teacher = Teacher()
    pairs: PairCounts = PairCounts()
    distance: DistanceName = "l2"
    lpips: Lpips = Lpips()
    loss_space: Literal["image", "latent"] = "image"
    learn: Annotated[dict[str, Value], AfterValidator(switches)] = {}
    search: Search = Search()
    baselines: Annotated[tuple[StartName, ...], Field(min_length=1)] = (
        "uniform",
        "quadratic",
        "log_snr",
        "karras",
    )
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _whole(self) -> Experiment:
        unique("models", tuple(m.label for m in self.models))
        unique("solvers", self.solvers)
        unique("nfe", self.nfe)
        unique("baselines", self.baselines)
        for key, value in self.learn.items():
            if key not in LEARN_FIELDS:
                raise unknown("key of learn", key, LEARN_FIELDS)
            if key in self.search.grid or key in self.search.optuna:
                raise ValueError(
                    f"learn.{key} is fixed to {value!r} and searched as well: keep one"
                )
            check_axis_value(key, value)
        check_combinations(self.learn, self.search.listed)
        self._check_asha()
        checkpointing = self.learn.get(
            "checkpointing", self.search.listed.get("search.grid.checkpointing", "on")
        )
        for i, model in enumerate(self.models):
            if model.recompute and checkpointing != "on":
                raise ValueError(
                    f"models.{i}.recompute = true, but learn.checkpointing = {checkpointing!r}: "
                    f"keep one"
                )
        for name in self.distances:
            if self.loss_space == "latent" and name not in ("l1", "l2"):
                raise ValueError(
                    f"loss_space: latent, but {name} compares images: use l2, l1 or loss_space: "
                    f"image"
                )
        networks = [n for n in self.distances if n.startswith("lpips")]
        if self.lpips.trunk and len(networks) > 1:
            raise ValueError(
                f"lpips.trunk = {self.lpips.trunk!r}: one file cannot serve "
                f"{', '.join(networks)}; remove it"
            )
        for solver in self.solvers:
            for nfe in self.nfe:
                least = make_solver(solver).stages
                if nfe < least:
                    raise ValueError(
                        f"nfe: {nfe} evaluations are too few for {solver}, a step of which takes "
                        f"{least}"
                    )
        return self

    def _check_asha(self) -> None:
        asha, longest = self.search.asha, self._most_epochs()
        if asha and asha.grace >= longest:
            raise ValueError(
                f"search.asha.grace = {asha.grace}: trials have at most {longest} epochs, so "
                f"none could be stopped "
                "early; make it smaller or remove search.asha"
            )

    def _most_epochs(self) -> int:
        """Epochs of the longest trial."""
        axes: dict[str, Any] = self.search.grid | self.search.optuna
        if axis := axes.get("epochs"):
            return int(axis.high if isinstance(axis, Range) else max(axis))
        learn: dict[str, Any] = dict(self.learn)
        presets = axes.get("preset", (learn.pop("preset", "default"),))
        return max(LearnConfig.of(preset, **learn).epochs for preset in presets)

    @property
    def distances(self) -> tuple[str, ...]:
        """Every distance a trial may use, the experiment's own first."""
        axes = self.search.grid | self.search.optuna
        axis = axes.get("distance", ())
        return tuple(
            dict.fromkeys([self.distance, *(() if isinstance(axis, Range) else map(str, axis))])
        )

    def distance_options(self, name: str) -> dict[str, Any]:
        """What else a distance depends on, for `make_distance` and for keys."""
        return self.lpips.model_dump() if name.startswith("lpips") else {}
