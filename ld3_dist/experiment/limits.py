"""Bounds and the rule for names of an experiment's settings, as types for its models.

A bound is far above any sensible use and below what hangs: it turns a slip of the keyboard into a
message. `check_size` bounds what the settings multiply to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from ..core.errors import InputError
from ..core.solver import MOST_NFE
from ..core.text import control_character
from ..schedule.ranges import MOST_SEEDS, SEED_STRIDE, SET_STRIDE

LONGEST_NAME = 100
"""Characters of a name that a user chooses."""

LONGEST_LABEL = 300
"""Characters of a model's own name: a path may be in it."""

MOST_POINTS = 10_000
"""Points of a grid search."""

MOST_SHARDS = 100_000
"""Shards of teacher pairs of one model."""

MOST_TRIALS = 1_000_000
"""Trials of a sweep: cells x points x rounds."""


def check_name(name: str) -> str:
    """A name as it is, for a sweep, a model, a cell.

    Raises InputError for an empty or long name, blanks at its ends, and characters that a
    terminal, a page or a file name would read as something else: square and angle brackets,
    backslashes, quotes, control characters, line separators.
    """
    if not name.strip():
        raise InputError("is empty; give it at least one letter")
    if name != name.strip():
        raise InputError("has blanks at an end; remove them")
    if len(name) > LONGEST_NAME:
        raise InputError(f"has {len(name)} characters; use at most {LONGEST_NAME}")
    return check_label(name)


def check_label(label: str) -> str:
    """The name that a model has in cells and tables, which may hold a path.

    Raises InputError naming the first character that no name may hold.
    """
    if len(label) > LONGEST_LABEL:
        raise InputError(
            f"{label[:40]!r}… has {len(label)} characters, at most {LONGEST_LABEL} are shown in "
            "tables; give the model a name: key"
        )
    unseen = re.search(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufff9-\ufffb]", label)
    if unseen:
        raise InputError(
            f"{ascii(label)[:80]} holds a character that is not seen (U+{ord(unseen[0]):04X}), "
            "which names must not; remove it"
        )
    control = control_character(label) or ("a line's end" if re.search(r"[\n\r\t]", label) else "")
    found = re.search(r"[\[\]<>\\\"'`|*?\u2028\u2029]", label)
    if control or found:
        what = control or repr(found[0]) if found else control
        raise InputError(
            f"{label[:80]!r} holds {what}, which names must not; use letters, digits, blanks and "
            "any of . _ - + : / = ( ) @ ,  (a model with such a path needs a name: key)"
        )
    return label


def _number_only(value: Any) -> Any:
    if isinstance(value, bool):
        raise InputError(f"is {str(value).lower()}; must be a number")
    if isinstance(value, str):
        raise InputError(f"is the word {value!r}; must be a number, without quotes")
    return value


OnlyNumber = BeforeValidator(_number_only)
"""Refuses switches and words where a number belongs; a model alone reads true as 1."""

SEEN = r"^(?!\s)[^\[\]<>\\\"'`|*?\n\r\t]+$"
"""The part of the rule for names that a JSON Schema can say; blanks at the end are not in it."""

Name = Annotated[
    str,
    AfterValidator(check_name),
    WithJsonSchema({"type": "string", "maxLength": LONGEST_NAME, "pattern": SEEN}),
]
Count = Annotated[int, OnlyNumber, Field(ge=1, le=10_000_000)]
"""Pairs, samples, epochs, batches."""
CountOrZero = Annotated[int, OnlyNumber, Field(ge=0, le=10_000_000)]
Nfe = Annotated[int, OnlyNumber, Field(ge=1, le=MOST_NFE)]
PairCount = Annotated[int, OnlyNumber, Field(ge=1, le=SEED_STRIDE)]
"""Pairs of one range, see `ranges`."""
SampleCount = Annotated[int, OnlyNumber, Field(ge=0, le=SET_STRIDE)]
"""Samples of one evaluation set, see `ranges`."""
SeedCount = Annotated[int, OnlyNumber, Field(ge=1, le=MOST_SEEDS)]
"""Seeds of a trial."""
Seed = Annotated[int, OnlyNumber, Field(ge=0, lt=2**63)]
"""A seed of a random generator, which holds 63 bits."""
Rounds = Annotated[int, OnlyNumber, Field(ge=1, le=100_000)]
Pixels = Annotated[int, OnlyNumber, Field(ge=1, le=16_384)]
Retries = Annotated[int, OnlyNumber, Field(ge=0, le=1000)]
Number = Annotated[float, OnlyNumber, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, OnlyNumber, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, OnlyNumber, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, OnlyNumber, Field(gt=0, le=10_000_000, allow_inf_nan=False)]


def check_size(
    cells: int, axes: Mapping[str, int], points: int, rounds: int = 1, where: str = "search.grid"
) -> None:
    """Refuse a search of more points or trials than a sweep can list.

    Args:
        cells: number of cells.
        axes: number of values of each axis, for the message.
        points: number of points that they make.
        rounds: how often each point is tried.
        where: the section that the axes stand in.

    Raises InputError naming the axes and their numbers of values.
    """
    if points > MOST_POINTS:
        named = " x ".join(f"{count:,} of {name}" for name, count in axes.items())
        remedy = "move axes to search.optuna" if where == "search.grid" else "set full: false"
        raise InputError(
            f"{where}: {named} are {points:,} points, at most {MOST_POINTS:,} are possible; "
            f"give fewer values, or {remedy}"
        )
    if cells * points * rounds > MOST_TRIALS:
        raise InputError(
            f"search.rounds = {rounds:,}: {cells:,} cells x {points:,} points x {rounds:,} rounds "
            f"are {cells * points * rounds:,} trials, at most {MOST_TRIALS:,} are possible; "
            "make it smaller"
        )


def check_shards(samples: int, shard: int) -> None:
    """Refuse samples of a model's teacher that are more shards than a sweep can list."""
    if samples > shard * MOST_SHARDS:
        raise InputError(
            f"resources.shard = {shard:,}: {samples:,} pairs and samples are {samples // shard:,} "
            f"shards, at most {MOST_SHARDS:,} are possible; make it larger"
        )
