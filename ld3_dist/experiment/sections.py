"""The sections of a sweep's YAML: models, teacher, pairs, search, evaluation, resources.

The sentence under a field is its description: in the JSON Schema, which editors show, and in the
reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..core.user_code import label
from ..schedule.ranges import HELD, PAIRS
from .axes import (
    ExtractorName,
    MemberStart,
    MetricName,
    ModelName,
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

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True
    )


class ModelSettings(Strict):
    """A model and how it is used. A name alone stands for `{model: NAME}`."""

    model: ModelName
    """digits, digits-flow, fashion, edm:FILE, diffusers:FOLDER, analytic:NAME or
    python:FILE.py:NAME.
    """
    name: Name | None = None
    """Name in cells and tables; made from the model and its options if not given."""
    conditional: bool | None = None
    """Condition on classes or prompts; if not given, as the model was trained."""
    guidance: NotNegative | None = None
    """Scale of classifier-free guidance; 1 is none."""
    prompts: str | None = None
    """Text file of prompts, one per line, for text models."""
    negative_prompt: str = ""
    """Prompt that guidance moves away from."""
    classes: str | None = None
    """Text file of class numbers to draw from; all classes if not given."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width of the images in pixels, for pipelines that make several sizes."""
    shift: Positive | None = None
    """Time shift of a flow model's grid; the model's own if not given."""
    dtype: Literal["float64", "float32", "bfloat16", "float16", "float8", "int8"] | None = None
    """Number type of the network; float8 and int8 are of its weights, the rest is bfloat16."""
    variant: str | None = None
    """Variant of the weights of a diffusers folder, e.g. fp16."""
    channels_last: bool = False
    """Memory format of convolutions on GPUs."""
    compile: bool = False
    """Compile the network with torch.compile: for GPUs; on a CPU it gains nothing."""
    recompute: bool = False
    """The same as `learn: {checkpointing: always}`, for this model alone."""

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
    """Solver of the teacher."""
    nfe: Nfe = 20
    """Network evaluations of the teacher."""
    start: StartName = "karras"
    """Time grid of the teacher."""


class Lpips(Strict):
    """Options of the distances `lpips-…`."""

    trunk: str | None = None
    """Weights file of the network; looked for in torch.hub's folder if not given."""
    upsample: bool = False
    """Enlarge images that are too small for the network."""


class PairCounts(Strict):
    """Numbers of teacher pairs: each member trains on `train` of its own, all share `valid`."""

    train: Annotated[PairCount, Field(ge=2)] = PAIRS
    """Pairs that each seed trains on."""
    valid: PairCount = HELD
    """Held-out pairs, which select the best epoch, start and trial."""


class Range(Strict):
    """A continuous axis of a search."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: bool = False
    """Propose values evenly in the logarithm."""

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
    """The members of a trial: every seed with every start."""

    seeds: SeedCount = 3
    """Number of seeds; each trains on pairs of its own."""
    starts: Annotated[tuple[MemberStart, ...], Field(min_length=1)] | None = None
    """Grids that learning begins from; the procedure's own if not given."""

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
    """Epochs before a trial can be stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """One trial in so many goes on at each rung."""


class Search(Strict):
    """The search of each cell: every point of `grid`, `rounds` times, with values for the
    `optuna` axes that a sampler proposes."""

    grid: dict[str, Values] = {}
    """Axes of which every combination is tried: a list of values each."""
    optuna: dict[str, Range | Values] = {}
    """Axes whose values a sampler proposes: a list, or low and high."""
    rounds: Rounds = 1
    """Trials of each point of the grid."""
    sampler: Literal["tpe", "random", "qmc"] = "tpe"
    """Sampler of the `optuna` axes."""
    members: Members = Members()
    """Seeds and starts of each trial."""
    asha: Asha | None = None
    """Stop bad trials early. Off by default: which trials stop depends on timing, so that a
    resumed sweep need not end with the table of an uninterrupted one."""


class Ablate(Strict):
    """Factors around a base: which settings matter, and how much."""

    base: dict[str, Value] = {}
    """The value of each factor in the base; a factor that is not named has the value that the
    rest of the experiment gives it."""
    vary: Annotated[dict[str, Values], Field(min_length=1)]
    """The levels of each factor."""
    full: bool = False
    """Try every combination; if false, one factor at a time around the base."""


class BestPer(Strict):
    """The best trial of each combination of levels of these axes."""

    best_per: Annotated[tuple[str, ...], Field(min_length=1)]
    """Axes of the experiment."""


class Evaluate(Strict):
    """Fresh samples for schedules and baselines of every cell."""

    samples: SampleCount = 1000
    """Fresh samples of each set."""
    repeats: Annotated[int, OnlyNumber, Field(ge=1, le=100)] = 1
    """Number of disjoint sets of samples; kernel distances have intervals from two on."""
    rows: Literal["best", "all"] | BestPer | None = None
    """Learned schedules to score beside the baselines: best (the best trial of each cell), all, or
    {best_per: [axes]} (the best trial for each level of these axes). If not given, all with
    `ablate` and best without."""
    extractor: ExtractorName = "auto"
    """Feature extractor: auto (the one that the model brings), none, or a name."""
    reference: str = "auto"
    """Features to compare with: auto (the model's data if it has any, else the teacher's samples),
    teacher, or a statistics file."""
    metrics: tuple[MetricName, ...] | None = None
    """Scores from features, of judges (clip_score:DIR, …), and further distances to the teacher
    (distance:NAME); the built-in scores from features if not given."""
    pictures: Annotated[CountOrZero, Field(le=64)] = 8
    """Samples that are kept as pictures."""


class Report(Strict):
    """The page of results."""

    figures: tuple[str, ...] | None = None
    """Names of figures, also python:FILE.py:NAME; all that are registered if not given."""


class Resources(Strict):
    """Resources of a cluster: per trial, per teacher and evaluation actor."""

    cpus_per_trial: Positive = 1
    """CPUs of a trial."""
    gpus_per_trial: NotNegative | Literal["auto"] = "auto"
    """GPUs of a trial; fractions 1, 1/2, 1/3 … are possible. auto: one where there are GPUs."""
    cpus_per_actor: Positive = 1
    """CPUs of a teacher or evaluation actor."""
    gpus_per_actor: NotNegative | Literal["auto"] = "auto"
    """GPUs of a teacher or evaluation actor."""
    trial: CustomResources = {}
    """Other resources of the cluster that a trial takes: names and amounts."""
    actor: CustomResources = {}
    """Other resources of the cluster that an actor takes."""
    actors: Count | Literal["auto"] = "auto"
    """Number of teacher and evaluation actors; auto: as many as fit."""
    concurrent_trials: Count | None = None
    """Most trials at a time; as many as fit if not given."""
    batch: Count = 250
    """Samples of one network call of teachers and evaluation."""
    shard: Count = 100
    """Samples of one task of a teacher, and of one file of pairs."""
    retries: Retries = 3
    """Further attempts at a task that failed."""
    deadline: Seconds = 3600.0
    """Seconds after which a task counts as hung."""
    checkpoint_seconds: NotNegative = 60.0
    """A trial keeps what it needs to go on at most so often; 0 is after every epoch."""
    callbacks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that follow the trials; each needs the extra of its name."""
