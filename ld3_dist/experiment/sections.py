"""The sections of a sweep's YAML: models, teacher, pairs, search, evaluation, resources."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..core.user_code import label
from .axes import (
    SolverName,
    StartName,
    Value,
    unique,
)
from .custom_resources import CustomResources
from .limits import (
    Count,
    CountOrZero,
    Name,
    Nfe,
    NotNegative,
    Number,
    OnlyNumber,
    PairCount,
    Pixels,
    Positive,
    Retries,
    Rounds,
    SampleCount,
    Seconds,
    SeedCount,
    check_label,
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
    """Numbers of teacher pairs: each member trains on `train` of its own, all share `valid`."""

    train: Annotated[PairCount, Field(ge=2)] = 50
    valid: PairCount = 50


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
    """The members of a trial: every seed with every start.

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
    """The search of each cell: every point of `grid`, `rounds` times, with values for the
    `optuna` axes that a sampler proposes.

    sampler: tpe, random, or qmc.
    asha: stop bad trials early. Off by default: which trials stop depends on timing, so that a
        resumed sweep need not end with the table of an uninterrupted one."""

    grid: dict[str, Values] = {}
    optuna: dict[str, Range | Values] = {}
    rounds: Rounds = 1
    sampler: Literal["tpe", "random", "qmc"] = "tpe"
    members: Members = Members()
    asha: Asha | None = None


class Ablate(Strict):
    """Factors around a base: which settings matter, and how much.

    base: the value of each factor in the base; a factor that is not named has the value that the
        rest of the experiment gives it.
    vary: the levels of each factor.
    full: try every combination; if false, one factor at a time around the base.
    """

    base: dict[str, Value] = {}
    vary: Annotated[dict[str, Values], Field(min_length=1)]
    full: bool = False


class BestPer(Strict):
    """The best trial of each combination of levels of these axes."""

    best_per: Annotated[tuple[str, ...], Field(min_length=1)]


class Evaluate(Strict):
    """Fresh samples for schedules and baselines of every cell.

    rows: what is evaluated beside the baselines: "best" (the best trial of each cell), "all", or
        {best_per: [axes]} (the best trial for each level of these axes). If not given, "all" with
        `ablate` and "best" without.
    samples, repeats: how many fresh samples, and how many disjoint sets of them.
    extractor: "auto" (what the model comes with), "none", or a name of `ld3_dist.metrics`.
    reference: "auto" (the model's data if it has any, else the teacher), "teacher", or a statistics
    file."""

    samples: SampleCount = 1000
    repeats: Annotated[int, OnlyNumber, Field(ge=1, le=100)] = 1
    rows: Literal["best", "all"] | BestPer | None = None
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
    """Resources of a cluster: per trial, per teacher and evaluation actor. GPUs may be fractions 1,
    1/2, 1/3 …

    trial, actor: other resources of the cluster; see `custom_resources`.
    callbacks: trackers that follow the trials.
    checkpoint_seconds: a trial keeps what it needs to go on at most so often; 0 is after every
    epoch."""

    cpus_per_trial: Positive = 1
    gpus_per_trial: NotNegative | Literal["auto"] = "auto"
    cpus_per_actor: Positive = 1
    gpus_per_actor: NotNegative | Literal["auto"] = "auto"
    trial: CustomResources = {}
    actor: CustomResources = {}
    actors: Count | Literal["auto"] = "auto"
    concurrent_trials: Count | None = None
    batch: Count = 250
    shard: Count = 100
    retries: Retries = 3
    deadline: Seconds = 3600.0
    checkpoint_seconds: NotNegative = 60.0
    callbacks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
