"""The tables of results, column by column: one explicit schema each, with its documentation inside.

    rows         one row per learned schedule (a member of a trial) and per hand-made baseline
    evaluations  the scores of samples: of a row's schedule, of a teacher, or of the data themselves
    failures     every attempt that went wrong, including those whose retry went well
    transfers    schedules and hand-made grids at sites where the schedules were not learned

Null means "not measured", or "not a finite number" (see `status`); NaN and infinity are never
written. The schemas are explicit because inferred ones would depend on the columns that happen to
be null in the first file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ..core.errors import unknown
from ..core.learning.procedure import procedures

FORMAT = 2
"""Version of the tables; readers refuse a newer one. In 1, `trial` was a number."""

# "element" is Parquet's own name, so that the schema is the same after reading a file
_FLOATS = pa.list_(pa.field("element", pa.float64()))
_SINGLES = pa.list_(pa.field("element", pa.float32()))
_TEXTS = pa.list_(pa.field("element", pa.string()))
_JUDGED = pa.map_(pa.string(), pa.field("value", _SINGLES))


def _field(name: str, kind: pa.DataType, doc: str, required: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=not required, metadata={"doc": doc})


def _schema(name: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"ld3_dist.table": name, "ld3_dist.format": str(FORMAT)})


_WHERE = [
    _field("host", pa.string(), "machine that did the work"),
    _field("address", pa.string(), "its IP address; hosts of containers may share a name"),
    _field("device", pa.string(), "device that did the work, e.g. cpu or cuda: NVIDIA A100"),
]

_VERSIONS = [
    _field("version", pa.string(), "version of ld3_dist"),
    _field("torch_version", pa.string(), "version of PyTorch"),
    _field("git_commit", pa.string(), "commit of the working copy, null outside one"),
]

_KINDS = {bool: pa.bool_(), int: pa.int32(), float: pa.float64(), str: pa.string()}


def _learning() -> list[pa.Field]:
    """One column for every setting of learning that any procedure has."""
    found: dict[str, pa.Field] = {}
    for procedure in procedures:
        for setting in dataclasses.fields(procedures.get(procedure).Config):
            kind = _KINDS[type(setting.default)]
            meaning = str(setting.metadata["meaning"])
            found.setdefault(setting.name, _field(setting.name, kind, meaning))
    del found["seed"]  # rows have a column for the member's seed
    return list(found.values())


LEARNING = {field.name: field.type for field in _learning()}
"""Settings of learning that have a column of their own, with its type."""


def learning_columns(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a procedure's settings that have a column of their own, and fit it.

    The procedure of a user's file may have others. They are in the JSON of the column `settings`,
    and `load_results` gives each a column `learn.NAME`.
    """
    return {name: value for name, value in settings.items() if has_column(name, value)}


def has_column(name: str, value: Any) -> bool:
    """True for a setting of learning that a column of `rows` holds."""
    kind = _KINDS.get(type(value))
    whole = kind == pa.int32() and LEARNING.get(name) == pa.float64()
    return name in LEARNING and (whole or LEARNING[name] == kind)


ROWS = _schema(
    "rows",
    [
        _field("key", pa.string(), "hash of the resolved settings of this row", required=True),
        _field(
            "experiment", pa.string(), "fingerprint of the experiment that first asked for the row"
        ),
        _field("kind", pa.string(), "learned or baseline (a hand-made grid)", required=True),
        _field(
            "cell",
            pa.string(),
            "model/conditioning/guidance/solver/NFE; losses of two cells do not compare",
            True,
        ),
        _field(
            "trial",
            pa.string(),
            "key of the trial: one point of a cell, for all seeds and starts; null for baselines",
        ),
        _field("round", pa.int32(), "round of the search that proposed the trial"),
        _field(
            "family",
            pa.string(),
            "key of the curve that the row's grid is read from, the same at every NFE; null for "
            "schedules of one NFE. The curve is in schedules/<family>.json",
        ),
        _field("model", pa.string(), "name of the model as in the experiment"),
        _field("model_hash", pa.string(), "hash of the weights"),
        _field("conditioning", pa.string(), "what the samples are conditioned on, e.g. class"),
        _field("guidance", pa.float64(), "classifier-free guidance scale"),
        _field("solver", pa.string(), "solver, e.g. unipc-3"),
        _field("nfe", pa.int32(), "network evaluations of one sample"),
        _field("steps", pa.int32(), "solver steps N; the grid has N + 1 knots"),
        _field(
            "start",
            pa.string(),
            "hand-made grid that learning started from, or the baseline itself",
        ),
        *_learning(),
        _field("radius", pa.float64(), "r itself, in unit-variance noise"),
        _field(
            "noise_moved",
            pa.float64(),
            "mean length by which the training noise has moved at the end, at most r",
        ),
        _field("distance", pa.string(), "distance that train_loss and valid_loss are in"),
        _field("seed", pa.int64(), "seed of the member"),
        _field("train_pairs", pa.int32(), "teacher pairs that the member learned from"),
        _field("valid_pairs", pa.int32(), "held-out teacher pairs"),
        _field("teacher", pa.string(), "key of the teacher, the folder of its pairs"),
        _field("teacher_solver", pa.string(), "solver of the teacher"),
        _field("teacher_nfe", pa.int32(), "network evaluations of the teacher"),
        _field("teacher_start", pa.string(), "grid of the teacher"),
        _field("settings", pa.string(), "every resolved setting, as JSON"),
        _field(
            "status",
            pa.string(),
            "ok, diverged (not finite), collapsed (knots fell together) or failed",
            True,
        ),
        _field(
            "message",
            pa.string(),
            "what happened, where status is not ok or the trial was stopped early",
        ),
        _field("knots", _FLOATS, "integration times t_0 > … > t_N"),
        _field("evals", _FLOATS, "network times, one an evaluation"),
        _field("min_gap", pa.float64(), "smallest knot gap as a fraction of the range of lambda"),
        _field("start_loss", pa.float64(), "hard held-out loss of the start"),
        _field("train_loss", pa.float64(), "training loss of the last epoch"),
        _field(
            "valid_loss",
            pa.float64(),
            "best hard held-out loss: mean distance to the teacher, r = 0",
        ),
        _field("best_epoch", pa.int32(), "epoch of the best held-out loss, 0 is the start"),
        _field("epochs_run", pa.int32(), "epochs done when the budget, patience or ASHA ended it"),
        _field("network_evals", pa.int64(), "work spent: samples times network evaluations"),
        _field("train_curve", _FLOATS, "training loss of every epoch"),
        _field("valid_curve", _FLOATS, "hard held-out loss of every epoch"),
        _field(
            "seconds",
            pa.float64(),
            "wall time of the trial, shared by its members; to find and measure a hand-made grid",
        ),
        _field(
            "device_seconds",
            pa.float64(),
            "seconds times the GPUs that the task held, or its CPUs where there is no GPU",
        ),
        _field(
            "peak_memory",
            pa.int64(),
            "bytes: most allocated on the GPU during the task, else most resident of its process",
        ),
        _field("started", pa.string(), "start of the trial, UTC, ISO 8601"),
        *_WHERE,
        _field("attempts", pa.int32(), "attempts it took"),
        *_VERSIONS,
    ],
)

EVALUATIONS = _schema(
    "evaluations",
    [
        _field(
            "key",
            pa.string(),
            "key of the row; teacher:<teacher key> of a teacher, data:<hash> of the data",
            True,
        ),
        _field("evaluation", pa.string(), "hash of the settings of the evaluation"),
        _field(
            "kind",
            pa.string(),
            "learned, baseline, teacher or data (one half against the other)",
            True,
        ),
        _field("cell", pa.string(), "cell of the row"),
        _field("samples", pa.int64(), "samples drawn, of all sets together"),
        _field("repeats", pa.int32(), "number of disjoint sets of samples"),
        _field("eval_loss", pa.float64(), "mean distance to the teacher on fresh pairs"),
        _field("eval_loss_sem", pa.float64(), "standard error of that mean"),
        _field("eval_loss_median", pa.float64(), "median distance to the teacher on fresh pairs"),
        _field("eval_loss_iqm", pa.float64(), "interquartile mean of these distances"),
        _field(
            "eval_gain_over",
            pa.string(),
            "key of the hand-made grid with the smallest eval_loss of the cell, when this was made",
        ),
        _field("eval_gain_low", pa.float64(), "lower end of the 95 % interval of eval_gain"),
        _field("eval_gain_high", pa.float64(), "upper end of that interval"),
        _field(
            "eval_p_improvement",
            pa.float64(),
            "share of the samples that are nearer to the teacher than with that grid",
        ),
        _field(
            "fid",
            pa.float64(),
            "Fréchet distance of the features to the reference, the mean over the sets",
        ),
        _field(
            "fid_low",
            pa.float64(),
            "lower end of its 95 % interval: over the sets, for a single set by the delta method; "
            "null if that has fewer samples than twice the features",
        ),
        _field("fid_high", pa.float64(), "upper end of that interval"),
        _field(
            "fid_gain",
            pa.float64(),
            "fid of the grid in eval_gain_over, on the same samples, over its own; by the delta "
            "method, null where fid_low would be",
        ),
        _field("fid_gain_low", pa.float64(), "lower end of its 95 % interval, paired by samples"),
        _field("fid_gain_high", pa.float64(), "upper end of that interval"),
        _field(
            "kid",
            pa.float64(),
            "kernel distance: unbiased squared MMD of the features to the reference",
        ),
        _field("kid_low", pa.float64(), "lower end of its 95 % interval over the sets"),
        _field("kid_high", pa.float64(), "upper end of that interval"),
        _field("kid_std", pa.float64(), "standard deviation of the kernel distance over subsets"),
        _field(
            "inception_score",
            pa.float64(),
            "Inception score of the samples, where the extractor is Inception-v3",
        ),
        _field(
            "precision", pa.float64(), "fraction of the samples inside the reference's manifold"
        ),
        _field("recall", pa.float64(), "fraction of the reference inside the samples' manifold"),
        _field("density", pa.float64(), "mean number of reference balls around a sample, over k"),
        _field("coverage", pa.float64(), "fraction of reference balls that hold a sample"),
        _field("own_metrics", pa.string(), "values of metrics that are not built in, as JSON"),
        _field(
            "over_grid",
            pa.string(),
            "mean scores of judges over those of the grid in eval_gain_over, and their 95 % "
            "intervals over prompts, as JSON",
        ),
        _field("not_measured", pa.string(), "why metrics have no value, as JSON by column"),
        _field("extractor", pa.string(), "feature extractor"),
        _field("extractor_hash", pa.string(), "hash of the extractor's weights"),
        _field("reference", pa.string(), "the reference set"),
        _field("seconds", pa.float64(), "wall time of the evaluation"),
        *_WHERE,
        *_VERSIONS,
    ],
)

_ROW_FIELDS = {field.name: field for field in ROWS}
_EVALUATION_FIELDS = {field.name: field for field in EVALUATIONS}
_OF_LOSSES = ("eval_loss", "eval_loss_sem", "eval_loss_median", "eval_loss_iqm")
_OF_FRESH_SAMPLES = ("samples", "repeats", *_OF_LOSSES)
_OF_GAINS = ("eval_gain_low", "eval_gain_high", "eval_gain_over", "eval_p_improvement")

FAILURES = _schema(
    "failures",
    [
        _field("stage", pa.string(), "teach, search or evaluate", required=True),
        _field("item", pa.string(), "shard, trial or row"),
        _field("attempt", pa.int32(), "attempt that failed, from 1"),
        _field("reason", pa.string(), "one line"),
        _field("traceback", pa.string(), "the traceback, where there is one"),
        _field("node", pa.string(), "machine it happened on"),
        _field("pid", pa.int64(), "process it happened in"),
        _field("time", pa.string(), "UTC, ISO 8601"),
    ],
)

LOSSES = _schema(
    "losses",
    [
        _field("key", pa.string(), "key of the row", required=True),
        _field("evaluation", pa.string(), "hash of the settings of the evaluation"),
        _field("repeat", pa.int32(), "number of the set of samples"),
        _field("start", pa.int64(), "index of the first sample"),
        _field("losses", _SINGLES, "distance to the teacher of this and the following samples"),
        _field(
            "frechet",
            _SINGLES,
            "what each of them adds to fid, of which it is the mean; null where fid_low would be",
        ),
        _field("judged", _JUDGED, "their scores by judge, and further distances, by name"),
        _field("prompts", _TEXTS, "their prompts, where there are scores by prompts"),
    ],
)

TRANSFERS = _schema(
    "transfers",
    [
        _field("key", pa.string(), "hash of what the losses of this row depend on", required=True),
        _field("kind", pa.string(), "learned, or baseline (a hand-made grid)", required=True),
        _field("schedule", pa.string(), "name of the schedule; null for baselines"),
        _field("learned_model", pa.string(), "model that the schedule was learned for"),
        _field("learned_solver", pa.string(), "solver that it was learned for"),
        _field("learned_guidance", pa.float64(), "guidance that it was learned for"),
        _field("site", pa.string(), "model, guidance, size and dtype that it is scored at", True),
        _field("cell", pa.string(), "site, solver and NFE; losses of two cells do not compare"),
        _field("model", pa.string(), "name of the site's model"),
        *(_ROW_FIELDS[name] for name in ("model_hash", "conditioning", "guidance")),
        _field("size", pa.string(), "height and width of the images, if asked for"),
        _field("dtype", pa.string(), "dtype of the network, if asked for"),
        *(_ROW_FIELDS[name] for name in ("solver", "nfe")),
        _field("start", pa.string(), "name of the hand-made grid; null for learned schedules"),
        *(_ROW_FIELDS[f"teacher_{name}"] for name in ("solver", "nfe", "start")),
        _field("distance", pa.string(), "distance that losses are in"),
        _field("seed", pa.int64(), "seed of the fresh samples"),
        *(_EVALUATION_FIELDS[name] for name in _OF_FRESH_SAMPLES),
        _field("eval_gain", pa.float64(), "eval_loss of the best hand-made grid here over its own"),
        _field("eval_gain_median", pa.float64(), "the same with median losses"),
        _field("eval_gain_iqm", pa.float64(), "the same with interquartile means"),
        *(_EVALUATION_FIELDS[name] for name in _OF_GAINS),
        _field("against", pa.string(), "name of that grid"),
        _field("verdict", pa.string(), "works, does not or undecided: is 1 below, above or in it"),
        _field("status", pa.string(), "ok, diverged (not finite) or failed", True),
        _field("message", pa.string(), "what happened, or what of the schedule was left behind"),
        *_VERSIONS,
    ],
)
"""What `ld3-dist transfer` writes: schedules scored where they were not learned."""

SCHEMAS = {
    "rows": ROWS,
    "evaluations": EVALUATIONS,
    "losses": LOSSES,
    "failures": FAILURES,
    "transfers": TRANSFERS,
}

IDENTITY = {
    "rows": ("key",),
    "evaluations": ("key", "evaluation"),
    "losses": ("key", "evaluation", "repeat", "start"),
}
"""Columns that tell the rows of a table apart; of two rows that agree in them, one counts."""


def schema_of(folder: str) -> pa.Schema:
    """The schema of the tables in a folder of a sweep.

    Raises InputError for a folder that holds no tables.
    """
    if folder not in SCHEMAS:
        raise unknown("table", folder, list(SCHEMAS))
    return SCHEMAS[folder]


def describe(table: str | None = None) -> str:
    """The documentation of one table, or of all, as Markdown."""
    parts = []
    for name in SCHEMAS if table is None else [table]:
        lines = [f"### `{name}`", "", "| column | type | null | meaning |", "|---|---|---|---|"]
        for field in schema_of(name):
            doc = (field.metadata or {})[b"doc"].decode()
            kind = str(field.type).replace("element: ", "").replace("item: ", "")
            lines.append(
                f"| `{field.name}` | {kind} | {'yes' if field.nullable else 'no'} | {doc} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
