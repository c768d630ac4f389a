"""The tables of one sweep, which a report is made of, and the files beside them.

Only the tables are needed. Without sample images, schedule files or experiment.json a report lacks
a section or a label, no more.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import InputError
from ..core.noise import NoiseSchedule
from ..core.text import file_name
from ..schedule.file import read_schedule
from ..store.frames import column
from ..store.lineage import current, own_distance
from ..store.opening import open_storage
from ..store.results import load_results, losses_in, read_evaluations
from ..store.storage import Storage
from ..store.tables import read_table

IMPORTANCE = "importance.csv"
"""Written by a sweep at its end: how much each axis of the search matters."""


@dataclass(frozen=True)
class SweepTables:
    """The tables of one sweep.

    Attributes:
        results: from `load_results`.
        experiment: the version of the experiment that ran last, empty if there is none.
    """

    storage: Storage
    results: pd.DataFrame
    evaluations: pd.DataFrame
    failures: pd.DataFrame
    experiment: Mapping[str, Any]

    def losses(self, keys: Collection[str], further: str | None = None) -> Mapping[str, np.ndarray]:
        """The distances to the teacher of rows, sample by sample, by row key.

        Args:
            further: name of another distance than the experiment's own, as in "distance.l1".
        """
        return losses_in([self.storage], self.results, further)(keys)

    @property
    def importance(self) -> pd.DataFrame:
        """The content of importance.csv; empty if there is none or it cannot be read."""
        try:
            text = self.storage.read_bytes(IMPORTANCE).decode()
            return pd.read_csv(io.StringIO(text))
        except (OSError, ValueError):
            return pd.DataFrame(columns=["cell", "axis", "importance", "trials"])

    @property
    def name(self) -> str:
        """The experiment's name, or that of its folder."""
        return str(self.experiment.get("name") or self.storage.url.rstrip("/").rpartition("/")[2])

    @property
    def unreadable(self) -> list[str]:
        """Names of files that could not be read and were left out."""
        tables = (self.results, self.failures)
        return [name for table in tables for name in table.attrs.get("unreadable", [])]

    @property
    def distance(self) -> str:
        """The label of the experiment's own distance, in which fresh samples are compared."""
        return own_distance(self.experiment)

    @property
    def figures(self) -> list[str] | None:
        """The figures that the experiment's settings name (`report: {figures: […]}`), or None."""
        settings = self.experiment.get("settings")
        report = settings.get("report") if isinstance(settings, dict) else None
        names = report.get("figures") if isinstance(report, dict) else None
        return [str(name) for name in names] if isinstance(names, list) else None

    def noise_of(self, rows: pd.DataFrame) -> NoiseSchedule | None:
        """The noise schedule of a model, from the schedule file of one of its rows.

        None where none of the first 20 can be read.
        """
        best_first = rows.sort_values("best", ascending=False, kind="stable")
        for key in column(best_first, "key").head(20):
            with contextlib.suppress(OSError, InputError, KeyError, TypeError, ValueError):
                return read_schedule(self.storage, f"schedules/{key}.json").noise_schedule
        return None

    def images(self, cell: str) -> dict[str, np.ndarray]:
        """Sample images of a cell from the same noise: `teacher`, `baseline` and `learned`.

        Each is [n, C, H, W] in [-1, 1]; a kind that was not kept or cannot be read is absent.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        name = f"samples/{file_name(cell)}.safetensors"
        older = f"samples/{cell.replace('/', '_')}.safetensors"  # written by format 1
        try:
            data = [self.storage.read_bytes(n) for n in (name, older) if self.storage.exists(n)]
            tensors = load(data[0]) if data else {}
        except (SafetensorError, OSError, ValueError):  # ValueError: no name for a file
            return {}
        images = {
            key: tensors[key].float().numpy()
            for key in ("teacher", "baseline", "learned")
            if key in tensors
        }
        return {
            key: value
            for key, value in images.items()
            if value.ndim == 4 and value.shape[1] in (1, 3)
        }


def read_sweep_tables(place: str | os.PathLike[str] | Storage) -> SweepTables:
    """Read the tables of a sweep folder (path or URL); InputError where there is none."""
    storage = open_storage(place)
    results = load_results(storage)
    return SweepTables(
        storage,
        results,
        read_evaluations(storage),
        read_table(storage, "failures"),
        current(storage),
    )
