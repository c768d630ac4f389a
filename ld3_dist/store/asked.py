"""The rows that the current experiment of an output folder asks for, among those that are there.

A folder keeps the rows of every experiment that ran in it (`lineage.py`). Folders of format 1 and 2
belong to one experiment, which asks for everything.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .frames import where
from .lineage import current
from .storage import Storage

log = logging.getLogger("ld3_dist")


@dataclass(frozen=True)
class Asked:
    """The rows that an experiment asks for; None stands for everything.

    trials: keys of the points of its cells.
    members: (seed, start) of each member.
    baselines: keys of the rows of hand-made grids.
    evaluations: hashes of the settings of its evaluations.
    """

    trials: frozenset[str] | None = None
    members: frozenset[tuple[int, str]] = frozenset()
    baselines: frozenset[str] = frozenset()
    evaluations: frozenset[str] | None = None

    def rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows that are asked for."""
        if self.trials is None:
            return rows
        pairs = pd.MultiIndex.from_arrays([rows["seed"].fillna(-1).astype(int), rows["start"]])
        trials = rows["trial"].astype("string").isin(list(self.trials)).to_numpy(bool)
        learned = trials & pairs.isin(list(self.members))
        return where(rows, learned | rows["key"].isin(list(self.baselines)).to_numpy(bool))


EVERYTHING = Asked()


def read_asked(storage: Storage) -> Asked:
    """The rows that the current experiment of a folder asks for; all of them if no file says it."""
    found = current(storage)
    if not isinstance(found.get("asked"), dict):
        return EVERYTHING
    try:
        return _parse(found)
    except (KeyError, TypeError, ValueError) as error:
        log.warning(
            "%s: experiment %s does not say what it asks for (%s: %s); every row is shown",
            storage.url,
            found.get("fingerprint"),
            type(error).__name__,
            error,
        )
        return EVERYTHING


def _parse(body: dict[str, Any]) -> Asked:
    asked, evaluations = body["asked"], body.get("evaluation")
    return Asked(
        frozenset(map(str, asked["trials"])),
        frozenset((int(seed), str(start)) for seed, start in asked["members"]),
        frozenset(map(str, asked["baselines"])),
        frozenset(map(str, evaluations)) if isinstance(evaluations, list) else None,
    )
