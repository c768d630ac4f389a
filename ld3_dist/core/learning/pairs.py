"""Teacher pairs: unit noise, and the sample that the teacher makes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Condition, map_condition
from ..errors import InputError


@dataclass(frozen=True)
class Pairs:
    """M teacher pairs.

    noise: unit-variance noise [M, *shape].
    target: the teacher's samples [M, …], decoded to images, or latents if the loss is on latents.
    condition: of M rows.
    origin: what made them, to be compared with what is learned for; "" where that is not known.
    """

    noise: Tensor
    target: Tensor
    condition: Condition = None
    origin: str = ""

    def __post_init__(self) -> None:
        if len(self.noise) != len(self.target):
            raise InputError(f"pairs: {len(self.noise)} noises but {len(self.target)} targets")

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, index: Tensor | slice) -> Pairs:
        chosen = map_condition(lambda c: c[index], self.condition)
        return Pairs(self.noise[index], self.target[index], chosen, self.origin)

    @staticmethod
    def joined(parts: Sequence[Pairs]) -> Pairs:
        """The pairs of several sets, one after the other."""
        if len(parts) == 1:
            return parts[0]
        conditions = [part.condition for part in parts]
        first = conditions[0]
        if isinstance(first, Mapping):
            named = [condition for condition in conditions if isinstance(condition, Mapping)]
            condition = {name: torch.cat([one[name] for one in named]) for name in first}
        else:
            plain = [condition for condition in conditions if isinstance(condition, Tensor)]
            condition = torch.cat(plain) if plain else None
        return Pairs(
            torch.cat([part.noise for part in parts]),
            torch.cat([part.target for part in parts]),
            condition,
            parts[0].origin if len({part.origin for part in parts}) == 1 else "",
        )

    def to(self, device: torch.device | str) -> Pairs:
        """The same pairs on a device."""
        return Pairs(
            self.noise.to(device),
            self.target.to(device),
            map_condition(lambda c: c.to(device), self.condition),
            self.origin,
        )
