"""Fresh samples of schedules, their distance to the teacher, and their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.comparison import Distance
from ..core.errors import InputError
from ..core.features import Extractor, Reference
from ..core.learning.pairs import Pairs
from ..core.solver import Tableau
from ..core.user_code import PREFIX
from ..metrics.extractors import model_reference, open_extractor
from ..metrics.paired import NOTHING, interval_over_sets
from ..metrics.resampling import statistic_of
from ..metrics.scores import BUILT_IN, Samples, as_reference, score
from ..metrics.statistics import frechet_parts, interval_of_parts
from ..models import Model
from ..store.tables import frame_of
from .baselines import hand_made, to_follow
from .distances import open_distance
from .file import Schedule
from .learning import check_student
from .ranges import SET_STRIDE, eval_range
from .sampling import BATCH, device_of, in_loss_space, make_samples, to_images
from .teaching import Teacher, teach

if TYPE_CHECKING:
    import pandas as pd

WITH_INTERVAL = ("fid", "kid")
"""Scores that have an interval over disjoint sets of samples; `fid` has one of a single set too."""


@dataclass(frozen=True)
class Measured:
    """Distances to the teacher, float64 [M], and features [M, F] if there is an extractor."""

    losses: Tensor
    features: Tensor | None = None


def measure(
    model: Model,
    tableau: Tableau | None,
    pairs: Pairs,
    distance: Distance,
    extractor: Extractor | None = None,
    *,
    space: str = "image",
    batch: int = BATCH,
) -> Measured:
    """Sample a schedule from the noise of pairs and compare with their targets, on the CPU.

    Args:
        tableau: of the schedule; None measures the teacher's own samples, the targets.
        space: of the pairs' targets, "image" or "latent".
    """
    made = pairs.target
    if tableau is not None:
        viewed = in_loss_space(model, space)
        made = make_samples(viewed, tableau, pairs.noise, pairs.condition, batch)
    with torch.no_grad():
        parts = torch.arange(len(made)).split(batch)
        losses = [distance(made[i], pairs.target[i]).cpu().double() for i in parts]
        if extractor is None:
            return Measured(torch.cat(losses))
        images = to_images(model, space, made, batch)
        features = [extractor.features(part).float().cpu() for part in images.split(batch)]
    return Measured(torch.cat(losses), torch.cat(features))


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
    sets: Sequence[Tensor],
    extractor: Extractor,
    references: Sequence[Reference | None],
    metrics: Sequence[str] = BUILT_IN,
    prompts: Sequence[Sequence[str] | None] | None = None,
) -> dict[str, Any]:
    """Scores of sets of features by column: the mean over the sets, and intervals.

    Args:
        sets: features [M, F] of disjoint sets of samples.
        references: the reference of each set.
        prompts: the prompts of each set's samples, if there are any.

    A score that could not be measured on some set is null.
    """
    found: dict[str, Any] = {"extractor": extractor.name, "extractor_hash": extractor.hash}
    found["reference"] = references[0].name if references[0] else None
    measured = []
    texts = prompts or [None] * len(sets)
    for features, reference, told in zip(sets, references, texts, strict=True):
        logits = None if extractor.class_scores is None else extractor.class_scores(features)
        given = Samples(features, logits, text=extractor.text, prompts=told)
        measured.append(score(given, reference, metrics).values)
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


def prompts_of(
    model: Model, seed: int, ranges: Sequence[range]
) -> list[Sequence[str] | None] | None:
    """The prompts of sets of samples; None for a model of no prompts."""
    draw = model.draw_prompts
    return None if draw is None else [draw(seed, indices) for indices in ranges]


def evaluate(
    model: Model,
    schedules: Sequence[Schedule | str],
    samples: int = 2000,
    *,
    repeats: int = 1,
    solver: str | None = None,
    nfe: int | None = None,
    seed: int = 0,
    teacher: str | Teacher = "unipc-3/20/karras",
    distance: str | Mapping[str, float] | Distance = "l2",
    extractor: str = "auto",
    metrics: Sequence[str] = BUILT_IN,
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
    features = open_extractor(extractor, model, home)
    ranges = [range(*eval_range(repeat, samples)) for repeat in range(repeats)]
    pairs = [teach(model, seed=seed, teacher=teacher, indices=indices) for indices in ranges]
    own = [measure(model, None, one, opened, features) for one in pairs]
    reference = None if features is None else model_reference(model, features)
    compared = [reference or as_reference(one.features) for one in own]
    prompts = prompts_of(model, seed, ranges)
    records = []
    for label, table, column in [(("teacher", "", 0), None, {}), *tables]:
        found = own
        if table is not None:
            found = [measure(model, table, one, opened, features) for one in pairs]
        record = {"key": label[0], "kind": "schedule" if table else "teacher"} | column
        record |= loss_columns(torch.cat([one.losses for one in found])) | {"repeats": repeats}
        sets = [one.features for one in found if one.features is not None]
        if features is not None and sets:
            others = [reference] * repeats if table is None else compared
            record |= score_columns(sets, features, others, metrics, prompts)
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
