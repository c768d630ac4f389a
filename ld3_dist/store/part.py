"""A part of a sweep's work: number i of n, as an array of jobs divides it.

The things to do stand in an order that follows from the experiment alone (teacher shards, cells,
cells with a grid point). Part i does those whose position, counted from 0, leaves i - 1 when
divided by n. So every part knows its share without asking the others, whenever each of them runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import InputError

MOST = 10_000
"""Parts of a sweep."""


@dataclass(frozen=True)
class Part:
    """Part `index` of `count`, counted from 1. Raises InputError unless 1 <= index <= count."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise InputError(f"--shard {self}: the number of shards must be from 1 to {MOST:,}")
        if not 1 <= self.index <= self.count:
            raise InputError(
                f"--shard {self}: there is no shard {self.index} of {self.count}; give one from "
                f"1/{self.count} to {self.count}/{self.count}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, position: int) -> bool:
        """True if the thing at this position, counted from 0, is in the part."""
        return position % self.count == self.index - 1


def parse_part(text: str) -> Part:
    """Read i/n, such as 3/8. Raises InputError for anything else."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
    if found is None:
        raise InputError(
            f"--shard {text}: write i/n, such as 3/8 for the third of eight; in an array of Slurm "
            "jobs numbered from 1, --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
        )
    return Part(int(found[1]), int(found[2]))
