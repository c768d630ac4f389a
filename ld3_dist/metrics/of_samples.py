"""Metrics that are means over single samples, whose values are kept sample by sample.

    clip_score:DIR, …   the score of a judge (`judges`)
    distance:NAME       the distance NAME between a sample and the teacher's from the same noise,
                        beside the experiment's own: distance:l1, distance:feature, …

The columns are metric.clip_score and metric.distance.NAME.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..core.distance import distance_entry
from ..core.errors import InputError
from ..core.user_code import label
from .judges import judge_name

DISTANCE = "distance"


def distance_name(metric: str) -> str | None:
    """The distance that a metric measures: "l1" of "distance:l1"; None for other metrics.

    Raises InputError for an unknown distance, and where none is named.
    """
    kind, _, name = metric.partition(":")
    if kind != DISTANCE:
        return None
    if not name:
        raise InputError(f"metric {metric!r}: no distance is named; write distance:NAME, as in "
                         "distance:l1")  # fmt: skip
    distance_entry(name)
    return name


def distances_among(metrics: Iterable[str]) -> list[str]:
    """The distances that some metrics measure, each once."""
    return list(dict.fromkeys(name for metric in metrics if (name := distance_name(metric))))


def distance_label(name: str) -> str:
    """The name that the values of a further distance are kept by."""
    return f"{DISTANCE}.{label(name)}"


def is_distance(name: str) -> bool:
    """True for a name that `distance_label` gave."""
    return name.startswith(f"{DISTANCE}.")


def sample_metric(metric: str) -> str | None:
    """The name that a metric's values are kept by: "clip_score" of "clip_score:DIR".

    None for metrics that are no means over samples. Raises InputError as `distance_name`.
    """
    distance = distance_name(metric)
    return judge_name(metric) if distance is None else distance_label(distance)
