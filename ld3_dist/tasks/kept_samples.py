"""Values of every sample of an evaluation, and the gain over the best hand-made grid from them.

All schedules of a cell are evaluated on the same noise, so that they compare sample by sample: in
distances to the teacher, in what each sample adds to the Fréchet distance, and prompt by prompt in
the scores of judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..metrics.judges.prompted import difference
from ..metrics.paired import NOTHING, improvement, ratios
from ..metrics.statistics import ratio_of_parts
from ..store.storage import Storage
from ..store.table_files import OVER_GRID
from ..store.tables import read_records, write_table
from .opened import forget, keep
from .scored import evaluation_name


@dataclass(frozen=True)
class Kept:
    """Values of M samples of an evaluation.

    losses: the distances to the teacher [M].
    frechet: what each adds to the Fréchet distance [M]; None where that is not known.
    scores: of judges and of further distances by name, [M] each.
    prompts: of each sample, where there are scores and the model has prompts.
    """

    losses: Tensor
    frechet: Tensor | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    prompts: Sequence[str] | None = None

    @staticmethod
    def joined(sets: Sequence[Kept]) -> Kept:
        """The sets of samples of an evaluation, one after the other."""
        frechet = [one.frechet for one in sets if one.frechet is not None]
        prompts = [one.prompts for one in sets if one.prompts is not None]
        return Kept(
            torch.cat([one.losses.float() for one in sets]),
            torch.cat([x.float() for x in frechet]) if len(frechet) == len(sets) else None,
            {name: torch.cat([one.scores[name] for one in sets]) for name in sets[0].scores},
            [text for one in prompts for text in one] if len(prompts) == len(sets) else None,
        )


def write_kept(
    storage: Storage, key: str, evaluation: str, starts: Sequence[int], sets: Sequence[Kept]
) -> None:
    """Keep what is known of every sample, a row per set; written before the scores.

    Args:
        key: of the row that is scored.
        starts: index of the first sample of every set.
    """
    records = []
    for i, (start, one) in enumerate(zip(starts, sets, strict=True)):
        record = {"key": key, "evaluation": evaluation, "repeat": i, "start": start}
        record["losses"] = one.losses.float().tolist()
        record["frechet"] = None if one.frechet is None else one.frechet.float().tolist()
        if one.scores:
            record["judged"] = [(name, x.float().tolist()) for name, x in one.scores.items()]
            record["prompts"] = None if one.prompts is None else list(one.prompts)
        records.append(record)
    write_table(storage, "losses", evaluation_name(key, evaluation), records)


def read_kept(storage: Storage, key: str, evaluation: str) -> Kept | None:
    """Read the values of the samples of an evaluation; None if they are not there."""
    records = read_records(storage, "losses", evaluation_name(key, evaluation))
    if not records:
        return None
    sets = []
    for record in sorted(records, key=lambda record: record["repeat"]):
        frechet = record.get("frechet")
        sets.append(
            Kept(
                torch.tensor(record["losses"]),
                None if frechet is None else torch.tensor(frechet),
                {name: torch.tensor(scores) for name, scores in record.get("judged") or ()},
                record.get("prompts"),
            )
        )
    return Kept.joined(sets)


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
    for name, scores in mine.scores.items():
        if name in known[best].scores:
            found = difference(scores, known[best].scores[name], mine.prompts)
            ends = {f"{OVER_GRID}{name}_low": found.low, f"{OVER_GRID}{name}_high": found.high}
            gain |= {f"{OVER_GRID}{name}": found.value} | ends
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
