"""The key `scale` of an experiment: the same questions with more data.

    scale: 4        four times the teacher pairs and the fresh samples

It multiplies `pairs.train`, `pairs.valid` and `evaluate.samples`, given or not; what is searched,
and axes such as `pairs.train`, stay as they are. An experiment is kept with the numbers that came
out, so that a scaled file and one with these numbers written out are the same experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .sections import Evaluate, PairCounts, Strict

SCALED: Mapping[str, tuple[type[Strict], tuple[str, ...]]] = {
    "pairs": (PairCounts, ("train", "valid")),
    "evaluate": (Evaluate, ("samples",)),
}
MOST = 10_000


def scaled(data: Any) -> Any:
    """Settings as read, with the counts that `scale` stands for; others unchanged.

    What is no scale or no count is left to the checks of its key.
    """
    scale = data.get("scale") if isinstance(data, Mapping) else None
    if scale is None or not _is_count(scale) or not 1 <= scale <= MOST:
        return data
    found = dict(data) | {"scale": 1}
    for name, (section, keys) in SCALED.items():
        given = found.get(name) or {}
        if isinstance(given, Mapping):
            counts = {key: given.get(key, section.model_fields[key].default) for key in keys}
            found[name] = dict(given) | {
                key: scale * count for key, count in counts.items() if _is_count(count)
            }
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
