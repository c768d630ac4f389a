"""Values of every sample of an evaluation, and the gain over the best hand-made grid from them.

All schedules of a cell are evaluated on the same noise, so that they compare sample by sample: in
the distance to the teacher, and in what each sample adds to the Fréchet distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..metrics.paired import NOTHING, improvement, ratios
from ..metrics.statistics import ratio_of_parts
from ..store.storage import Storage
from ..store.tables import read_records, write_table
from .opened import forget, keep
from .scored import evaluation_name


@dataclass(frozen=True)
class Kept:
    """Values of every sample of an evaluation, float32 [M].

    losses: the distance to the teacher.
    frechet: what the sample adds to the Fréchet distance; None where that is not known.
    """

    losses: Tensor
    frechet: Tensor | None = None

    @staticmethod
    def of(losses: Sequence[Tensor], frechet: Sequence[Tensor | None]) -> Kept:
        """The sets of samples of an evaluation, one after the other."""
        parts = [one.float() for one in frechet if one is not None]
        whole = torch.cat(parts) if len(parts) == len(losses) else None
        return Kept(torch.cat([one.float() for one in losses]), whole)


def write_kept(
    storage: Storage,
    key: str,
    evaluation: str,
    starts: Sequence[int],
    losses: Sequence[Tensor],
    frechet: Sequence[Tensor | None],
) -> None:
    """Keep what is known of every sample, a row per set; written before the scores.

    Args:
        key: of the row that is scored.
        starts: index of the first sample of every set.
        losses, frechet: of every set, [M], as in `Kept`.
    """
    shared = {"key": key, "evaluation": evaluation}
    sets = zip(starts, losses, frechet, strict=True)
    records = [
        shared
        | {"repeat": i, "start": start, "losses": one.float().tolist()}
        | {"frechet": None if parts is None else parts.float().tolist()}
        for i, (start, one, parts) in enumerate(sets)
    ]
    write_table(storage, "losses", evaluation_name(key, evaluation), records)


def read_kept(storage: Storage, key: str, evaluation: str) -> Kept | None:
    """Read the values of the samples of an evaluation; None if they are not there."""
    records = read_records(storage, "losses", evaluation_name(key, evaluation))
    if not records:
        return None
    ordered = sorted(records, key=lambda record: record["repeat"])
    frechet = [record.get("frechet") for record in ordered]
    return Kept.of(
        [torch.tensor(record["losses"]) for record in ordered],
        [None if parts is None else torch.tensor(parts) for parts in frechet],
    )


def gain_columns(
    storage: Storage, rivals: Sequence[str], evaluation: str, mine: Kept
) -> dict[str, Any]:
    """The gain over the best of some hand-made grids on the same samples, with its interval.

    The best is the grid with the smallest mean. That it was chosen on these samples makes the gain
    smaller than it is, if anything. Nothing where no grid has an evaluation of these samples.

    Args:
        rivals: row keys of the grids.
    """
    grids = _kept_of_grids(storage, rivals, evaluation)
    known = {key: grid for key, grid in grids.items() if len(grid.losses) == len(mine.losses)}
    if not known:
        return {}
    best = min(known, key=lambda key: float(known[key].losses.double().mean()))
    ours, grid = mine.losses.double().numpy(), known[best].losses.double().numpy()
    _, (low,), (high,) = ratios(ours[None], grid)
    gain: dict[str, Any] = {"eval_gain_over": best, "eval_p_improvement": improvement(ours, grid)}
    gain |= {"eval_gain_low": 1 / high, "eval_gain_high": 1 / low}
    x, y = mine.frechet, known[best].frechet
    if x is not None and y is not None:
        found = ratio_of_parts(y.double(), x.double())
        if found is not NOTHING:
            ends = {"fid_gain_low": found.low, "fid_gain_high": found.high}
            gain |= {"fid_gain": found.value} | ends
    return gain


def _kept_of_grids(storage: Storage, keys: Sequence[str], evaluation: str) -> dict[str, Kept]:
    """The samples of a cell's grids that are there; many learned rows are compared with them."""

    def read() -> dict[str, Kept]:
        found = {key: read_kept(storage, key, evaluation) for key in keys}
        return {key: kept for key, kept in found.items() if kept is not None}

    name = f"losses {storage.url} {evaluation} {' '.join(keys)}"
    grids = keep(name, read)
    if len(grids) < len(keys):
        forget(name)
    return grids
