"""Findings of methods along the same trajectories, kept by whoever asks for several grids."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Findings = dict[tuple[str, int], Tensor]
"""What was found along the trajectories of a network from the same noise, by method and fine steps.

It serves any number of steps that are chosen from the fine ones.
"""


def found(findings: Findings | None, key: tuple[str, int], find: Callable[[], Tensor]) -> Tensor:
    """A finding; it is made, and kept among the others, if it is not there."""
    if findings is None:
        return find()
    if key not in findings:
        findings[key] = find()
    return findings[key]
