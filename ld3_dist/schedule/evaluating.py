"""Fresh samples of schedules, their distance to the teacher, and their scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.comparison import Distance
from ..core.errors import InputError
from ..core.features import Extractor, Judge, Reference
from ..core.learning.pairs import Pairs
from ..core.solver import Tableau
from ..core.user_code import PREFIX
from ..metrics.extractors import model_reference, open_extractor
from ..metrics.judges import judge_name, open_judges
from ..metrics.of_samples import distance_label, distances_among, sample_metric
from ..metrics.paired import NOTHING, interval_over_sets
from ..metrics.resampling import statistic_of
from ..metrics.scores import BUILT_IN, Samples, as_reference, score
from ..metrics.statistics import frechet_parts, interval_of_parts
from ..models import Model
from ..models.loaded import check_model
from ..store.tables import frame_of
from .baselines import hand_made, to_follow
from .distances import open_distance
from .file import Schedule
from .learning import check_student
from .ranges import SET_STRIDE, eval_range
from .sampling import BATCH, device_of, in_loss_space, make_samples, to_images
from .several import several
from .target_features import TargetFeatures
from .teaching import Teacher, teach

if TYPE_CHECKING:
    import pandas as pd

WITH_INTERVAL = ("fid", "kid")
"""Scores that have an interval over disjoint sets of samples; `fid` has one of a single set too."""


@dataclass(frozen=True)
class Measured:
    """Values of M samples, on the CPU.

    losses: distances to the teacher, float64 [M].
    features: [M, F], if there is an extractor.
    scores: of judges and of further distances by name, float64 [M] each.
    """

    losses: Tensor
    features: Tensor | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)


def measure(
    model: Model,
    tableau: Tableau | None,
    pairs: Pairs,
    distance: Distance,
    extractor: Extractor | None = None,
    judges: Mapping[str, Judge] | None = None,
    prompts: Sequence[str] | None = None,
    *,
    further: Mapping[str, Distance] | None = None,
    space: str = "image",
    batch: int = BATCH,
    known: TargetFeatures | None = None,
) -> Measured:
    """Sample a schedule from the noise of pairs and compare with their targets, on the CPU.

    Args:
        tableau: of the schedule; None measures the teacher's own samples, the targets.
        judges: of single images, by name; those that read prompts are left out where there are no
            prompts.
        prompts: of every sample, if the model has any.
        further: more distances to the teacher, by name.
        space: of the pairs' targets, "image" or "latent".
        known: features of targets that were made before; those of these pairs are kept there.
            Nothing is kept if it is not given.
    """
    made, known = pairs.target, known or TargetFeatures(limit=0)
    if tableau is not None:
        viewed = in_loss_space(model, space)
        made = make_samples(viewed, tableau, pairs.noise, pairs.condition, batch)
    with torch.no_grad():
        losses = known.distances(distance, made, pairs.target, batch)
        scores = {
            distance_label(name): known.distances(other, made, pairs.target, batch)
            for name, other in (further or {}).items()
        }
        if extractor is None and not judges:
            return Measured(losses, None, scores)
        images = to_images(model, space, made, batch)
        features = None if extractor is None else extractor.features_of(images, batch)
        scores |= {
            name: _scores_of(judge, images, prompts, batch)
            for name, judge in (judges or {}).items()
            if prompts is not None or not judge.reads_prompts
        }
    return Measured(losses, features, scores)


def _scores_of(judge: Judge, images: Tensor, prompts: Sequence[str] | None, batch: int) -> Tensor:
    """A judge's scores of images [M, C, H, W] -> float64 [M] on the CPU."""
    told = prompts or [""] * len(images)
    starts = range(0, len(images), batch)
    parts = [judge.score(images[i : i + batch], told[i : i + batch]) for i in starts]
    return torch.cat([part.double().cpu() for part in parts])


def loss_columns(losses: Tensor) -> dict[str, Any]:
    """samples, eval_loss (the mean), its standard error, median and interquartile mean.

    Args:
        losses: distances [M].
    """
    found: dict[str, Any] = {"samples": len(losses), "eval_loss": losses.mean().item()}
    array = losses.double().numpy()
    for name in ("median", "iqm"):
        found[f"eval_loss_{name}"] = statistic_of(array, name)
    if len(losses) > 1:
        found["eval_loss_sem"] = (losses.std() / math.sqrt(len(losses))).item()
    return found


def score_columns(
    sets: Sequence[Measured],
    extractor: Extractor | None,
    references: Sequence[Reference | None],
    metrics: Sequence[str] = BUILT_IN,
) -> dict[str, Any]:
    """Scores of sets of samples by column: the mean over the sets, and intervals.

    Args:
        sets: disjoint sets of samples.
        references: the reference of each set.

    A score that could not be measured on some set is null, and `not_measured` says why, as JSON.
    """
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    features = [one.features for one in sets if one.features is not None]
    if extractor is not None and features:
        names = [name for name in metrics if sample_metric(name) is None]
        found |= _feature_columns(features, extractor, references, names, reasons)
    found |= _sample_columns(joined([one.scores for one in sets]), metrics, reasons)
    return found | {"not_measured": json.dumps(reasons, sort_keys=True) if reasons else None}


def joined(scores: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The values of every metric of single samples over all sets, one after the other."""
    return {name: torch.cat([one[name] for one in scores]) for name in scores[0]}


def _feature_columns(
    sets: Sequence[Tensor],
    extractor: Extractor,
    references: Sequence[Reference | None],
    metrics: Sequence[str],
    reasons: dict[str, str],
) -> dict[str, Any]:
    """Scores from features [M, F] of each set; why one has no value is added to `reasons`."""
    found: dict[str, Any] = {"extractor": extractor.name, "extractor_hash": extractor.hash}
    found["reference"] = references[0].name if references[0] else None
    measured = []
    for features, reference in zip(sets, references, strict=True):
        logits = None if extractor.class_scores is None else extractor.class_scores(features)
        scores = score(Samples(features, logits), reference, metrics)
        measured.append(scores.values)
        reasons |= scores.reasons
    for name in dict.fromkeys(name for values in measured for name in values):
        values = [one.get(name) for one in measured]
        known = [value for value in values if value is not None]
        whole = len(known) == len(values)
        interval = interval_over_sets(known) if whole else NOTHING
        found[name] = interval.value if whole else None
        if name == "fid" and whole and len(sets) == 1 and references[0]:
            parts = frechet_parts(sets[0], references[0].moments)
            interval = interval if parts is None else interval_of_parts(parts)
        if name in WITH_INTERVAL and math.isfinite(interval.low):
            found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def _sample_columns(
    scores: Mapping[str, Tensor], metrics: Sequence[str], reasons: dict[str, str]
) -> dict[str, Any]:
    """The mean of every metric of single samples [M]; why one has none is added to `reasons`."""
    found: dict[str, Any] = {}
    for metric in metrics:
        name = sample_metric(metric)
        if name is None:
            continue
        column, values = f"metric.{name}", scores.get(name)
        found[column] = None if values is None else values.mean().item()
        if judge_name(metric) and ":" not in metric:
            reasons[column] = f"no weights are named; write {name}:DIR"
        elif values is None:
            reasons[column] = "the model has no prompts"
    return found


def prompts_of(
    model: Model, seed: int, ranges: Sequence[range]
) -> list[Sequence[str] | None] | None:
    """The prompts of sets of samples; None for a model of no prompts."""
    draw = model.draw_prompts
    return None if draw is None else [draw(seed, indices) for indices in ranges]


# Most lines are the arguments and what each of them means.
def evaluate(
    model: Model,
    schedules: Schedule | str | Sequence[Schedule | str],
    samples: int = 2000,
    *,
    repeats: int = 1,
    solver: str | None = None,
    nfe: int | None = None,
    seed: int = 0,
    teacher: str | Teacher = "unipc-3/20/karras",
    distance: str | Mapping[str, float] | Distance = "l2",
    extractor: str = "auto",
    metrics: str | Sequence[str] = BUILT_IN,
) -> pd.DataFrame:
    """Score schedules and hand-made grids on fresh samples, all from the same noise.

    Args:
        schedules: schedules, and names of grids, which are run with `solver` in `nfe` evaluations,
            or else with the solver and NFE of each schedule in the list. A curve is read at `nfe`.
        samples: fresh samples of a set, of which none was used in teaching.
        repeats: disjoint sets of samples; with several, scores have intervals.
        extractor: name of a feature extractor, "none" for distances to the teacher alone.
        metrics: names of metrics.

    Returns a frame with a row per schedule and one for the teacher: name, solver, nfe and the
    columns of the table `evaluations`. Raises InputError for a name without solver and NFE, a
    schedule of another noise schedule than the model's, and names that do not exist.

    >>> import ld3_dist as ld3
    >>> model = ld3.load_model("analytic:mixture-2d")
    >>> frame = ld3.evaluate(model, ["karras"], 20, solver="ddim", nfe=4)
    >>> frame["name"].tolist()
    ['teacher', 'karras']
    """
    check_model(model)
    schedules, metrics = several(schedules), several(metrics)
    if samples < 2 or samples > SET_STRIDE:
        raise InputError(
            f"samples = {samples}: at least 2 are needed, at most {SET_STRIDE:,} possible"
        )
    if repeats < 1:
        raise InputError(f"repeats = {repeats}: at least 1 set of samples is needed")
    tables = list(_tables(model, schedules, solver, nfe, seed))
    home = str(device_of(model))
    opened = (
        open_distance(distance, model, home) if not isinstance(distance, Distance) else distance
    )
    features, judges = open_extractor(extractor, model, home), open_judges(metrics, home)
    further = {name: open_distance(name, model, home) for name in distances_among(metrics)}
    ranges = [range(*eval_range(repeat, samples)) for repeat in range(repeats)]
    pairs = [teach(model, seed=seed, teacher=teacher, indices=indices) for indices in ranges]
    prompts = prompts_of(model, seed, ranges) or [None] * repeats
    known = TargetFeatures()

    def measured(table: Tableau | None) -> list[Measured]:
        sets = zip(pairs, prompts, strict=True)
        return [
            measure(model, table, one, opened, features, judges, told, further=further, known=known)
            for one, told in sets
        ]

    own = measured(None)
    reference = None if features is None else model_reference(model, features)
    compared = [reference or as_reference(one.features) for one in own]
    records = []
    for label, table, column in [(("teacher", "", 0), None, {}), *tables]:
        found = own if table is None else measured(table)
        record = {"key": label[0], "kind": "schedule" if table else "teacher"} | column
        record |= loss_columns(torch.cat([one.losses for one in found])) | {"repeats": repeats}
        others = [reference] * repeats if table is None else compared
        record |= score_columns(found, features, others, metrics)
        records.append(record)
    frame = frame_of("evaluations", records)
    labels = [("teacher", None, None), *(label for label, _, _ in tables)]
    for i, column in enumerate(("name", "solver", "nfe")):
        frame.insert(i, column, [label[i] for label in labels])
    return frame.drop(columns=["key", "kind", "cell"])


Label = tuple[str, str, int]


def _tables(
    model: Model,
    schedules: Sequence[Schedule | str],
    solver: str | None,
    nfe: int | None,
    seed: int,
) -> list[tuple[Label, Tableau, dict[str, Any]]]:
    schedules = [
        s.at(nfe) if isinstance(s, Schedule) and s.curve is not None and nfe else s
        for s in schedules
    ]
    given = [s for s in schedules if isinstance(s, Schedule)]
    cells = [(solver, nfe)] if solver and nfe else [(s.solver, s.nfe) for s in given]
    followed = to_follow((s for s in schedules if isinstance(s, str)), model, seed)
    found: list[tuple[Label, Tableau, dict[str, Any]]] = []
    for item in schedules:
        if isinstance(item, Schedule):
            label = item.row or f"{item.procedure or 'schedule'}, {item.solver}, {item.nfe}"
            found.append(((label, item.solver, item.nfe), item.table_for(model), {}))
            continue
        if not cells:
            raise InputError(f"grid {item!r}: say for which solver= and nfe=, or add a schedule")
        for name, count in dict.fromkeys(cells):
            if solver is None and str(name).startswith(PREFIX):
                raise InputError(
                    f"grid {item!r}: the schedule's solver is code of a user's file ({name}), "
                    "which no schedule file may run; say solver= and nfe= yourself"
                )
            student = check_student(str(name), int(count or 0))
            table = hand_made(item, model, student, int(count or 0), followed)[1]
            found.append(((item, str(name), int(count or 0)), table, {}))
    return found
