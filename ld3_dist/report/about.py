"""The part of the page about the sweep itself: facts, methods and settings, all from its tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from ..store.frames import column, count, distinct, numbers, of_kind, where
from .formats import counted, number
from .tables import SweepTables


def facts(sweep: SweepTables, cells: int) -> list[tuple[str, str]]:
    """(name, value) pairs: when it ran, what it cost, with which versions."""
    frame = sweep.results
    learned, ok = len(of_kind(frame, "learned")), len(of_kind(frame, "learned", "ok"))
    commits = [commit[:10] for commit in distinct(frame, "git_commit")]
    fingerprint = sweep.experiment.get("fingerprint") or _values(frame, "experiment")[:16]
    hosts = distinct(frame, "host")
    date, duration = _when(sweep)
    found = [
        ("date", date),
        ("duration", duration),
        ("device time of learning", _device_time(frame)),
        ("network evaluations", f"{column(frame, 'network_evals').sum():,}"),
        ("cells", str(cells)),
        ("learned schedules", f"{ok:,} ok, {learned - ok:,} not ok"),
        ("hand-made grids", f"{count(column(frame, 'kind') == 'baseline'):,}"),
        ("distance", _values(frame, "distance")),
        ("features", _values(frame, "extractor")),
        ("samples evaluated", _values(frame, "samples")),
        ("device", _values(frame, "device")),
        ("machines", counted(len(hosts), "machine") if hosts else ""),
        ("ld3_dist", _values(frame, "version")),
        ("PyTorch", _values(frame, "torch_version")),
        ("commit", ", ".join(commits[:3])),
        ("fingerprint", str(fingerprint)),
    ]
    return [(name, value) for name, value in found if value]


def methods(sweep: SweepTables) -> str:
    """A paragraph about what was measured on what."""
    frame = sweep.results
    learned = of_kind(frame, "learned")
    if frame.empty:
        return ""
    sentences = []
    told = where(frame, column(frame, "teacher_nfe").notna())
    named = [column(told, f"teacher_{name}") for name in ("solver", "nfe", "start")]
    different = {f"{s} with {int(n)} evaluations on {g}" for s, n, g in zip(*named, strict=True)}
    teachers = sorted(different)
    if teachers:
        sentences.append(f"The teacher is {' or '.join(teachers[:3])}.")
    if len(learned):
        seeds = len(distinct(learned, "seed"))
        sentences.append(
            f"Every schedule was learned from {_values(learned, 'train_pairs')} pairs of noise and "
            f"teacher's sample and chosen on {_values(learned, 'valid_pairs')} held-out pairs, in "
            f"{_values(learned, 'distance')}, with {counted(seeds, 'seed')}."
        )
    measured = where(frame, column(frame, "eval_loss").notna())
    if len(measured):
        sentences.append(
            f"The best schedule of a cell and its hand-made grids were then sampled from the same "
            f"{_values(measured, 'samples')} fresh noises, which nothing was learned or chosen on."
        )
    else:
        sentences.append("Nothing was sampled from fresh noise.")
    featured = where(frame, column(frame, "fid").notna())
    if len(featured):
        sentences.append(
            f"Fréchet distances compare features of {_values(featured, 'extractor')} with those "
            f"of the reference {_values(featured, 'reference')}."
        )
    return " ".join(sentences)


def settings_yaml(sweep: SweepTables) -> str:
    """The experiment as YAML with every default filled in; empty where it was not kept."""
    import yaml

    settings = sweep.experiment.get("settings")
    if not isinstance(settings, dict):
        return ""
    return yaml.safe_dump(_without_nulls(settings), sort_keys=False, allow_unicode=True)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _when(sweep: SweepTables) -> tuple[str, str]:
    """The day of the first trial, and the time from the first to the last; empty if unknown."""
    known = [
        (start, start.timestamp() + float(seconds))
        for text, seconds in zip(
            column(sweep.results, "started"), numbers(sweep.results, "seconds"), strict=True
        )
        if (start := _time(text)) is not None and seconds == seconds
    ]
    run = [_time(sweep.experiment.get(name)) for name in ("first_run", "last_run")]
    starts = [start for start, _ in known] + [time for time in run if time]
    if not starts:
        return "", ""
    first = min(starts)
    last = max([end for _, end in known] + [time.timestamp() for time in run if time])
    return f"{first:%Y-%m-%d %H:%M} UTC", span(last - first.timestamp())


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _device_time(frame: pd.DataFrame) -> str:
    spent = numbers(frame, "device_seconds").dropna() if "device_seconds" in frame else ()
    return span(float(sum(spent))) if len(spent) else ""


def span(seconds: float) -> str:
    """A duration in the unit that fits: '48 s', '3.28 min', '2.10 h'."""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 100 * size or unit == "h":
            return f"{number(seconds / size)} {unit}"
    raise AssertionError


def _values(frame: pd.DataFrame, name: str, most: int = 4) -> str:
    """The different values of a column, in order, as text."""
    if name not in frame:
        return ""
    values = distinct(frame, name)
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(values[:most]) + more
