"""Interactions of an ablation: what a level does at each level of another factor.

With `ablate: {full: true}` every combination of levels was learned. A level and the base are then
compared as in `report.ablation`, once for each level of every other factor:

    does soft forcing help where there are ten pairs, where there are a hundred?

The numbers are those of an ablation of the rows at that level alone, so each is less certain than
the ablation's own. p-values are corrected for all of them.
"""

from __future__ import annotations

import pandas as pd

from ..store.frames import groups, records, where
from .ablation import COLUMNS, at_level, compared, corrected, level_lines
from .tables import SweepTables

WITHIN = ("other", "other_level")
"""Columns of interactions.csv beside those of ablation.csv: the other factor, and its level."""


def interaction_table(sweep: SweepTables) -> pd.DataFrame:
    """Levels against the base at each level of another factor, a row for each score.

    Empty unless the ablation is a full one of two factors or more. Raises InputError as
    `ablation.factors_of`.
    """
    columns = [*COLUMNS[:4], *WITHIN, *COLUMNS[4:]]
    settings = sweep.experiment.get("settings") or {}
    found = []
    if not (settings.get("ablate") or {}).get("full"):
        return pd.DataFrame(columns=columns)
    known = compared(sweep)
    for model, rows in groups(known.rows, "model"):
        for other in known.factors:
            for there in other.levels:
                inside = where(rows, [at_level(row, other, there) for row in records(rows)])
                shared = {"model": model, "other": other.name, "other_level": there}
                found += [
                    shared | line
                    for factor in known.factors
                    if factor.name != other.name
                    for level in factor.levels[1:]
                    for line in level_lines(known, inside, factor, level)
                ]
    return corrected(pd.DataFrame.from_records(found, columns=columns))
