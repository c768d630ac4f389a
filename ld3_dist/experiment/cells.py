"""Cells of an experiment, and the trials in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..core.learning.config import LearnConfig
from ..core.learning.procedure import make_config
from ..core.solver import make_solver
from ..core.user_code import label
from ..schedule.teaching import Teacher
from .contents import digest
from .sections import ModelSettings

Member = tuple[int, str]
"""Seed number and name of the start."""


@dataclass(frozen=True)
class Cell:
    """(model, solver, NFE, conditioning): losses of two cells cannot be compared."""

    model: ModelSettings
    solver: str
    nfe: int

    @property
    def id(self) -> str:
        """The cell's name in tables and messages."""
        return f"{self.model.label}/{label(self.solver)}/{self.nfe}"

    @property
    def steps(self) -> int:
        """Number of steps of the grids."""
        return make_solver(self.solver).steps(self.nfe)


@dataclass(frozen=True)
class TrialSpec:
    """One point of a cell, resolved, with the members to learn.

    settings: of learning, distance, teacher and pairs.
    key: names the point, whatever its members.
    members: (seed number, start), starts varying fastest.
    keys: the row key of each member.
    family: names the learning that this trial shares with those of other NFEs (see `families`).
    curves: the key of each member's curve, in a family.
    """

    cell: Cell
    settings: dict[str, Any]
    key: str
    members: tuple[Member, ...]
    keys: tuple[str, ...]
    family: str | None = None
    curves: tuple[str, ...] = ()

    @cached_property
    def config(self) -> LearnConfig:
        """The settings that its members learn with."""
        return make_config(**self.settings["learn"])

    @cached_property
    def task(self) -> str:
        """Name of the work on these members: of their rows' file, checkpoint and failures."""
        return digest([self.key, self.keys])

    @property
    def teacher(self) -> Teacher:
        """The teacher whose pairs it learns from."""
        return Teacher(**self.settings["teacher"])

    @property
    def train(self) -> int:
        """Teacher pairs that each member learns from."""
        return self.settings["pairs"]["train"]

    def only(self, chosen: Iterable[int]) -> TrialSpec:
        """The same point with some of its members, by their positions."""
        positions = list(chosen)
        members = tuple(self.members[i] for i in positions)
        curves = tuple(self.curves[i] for i in positions) if self.curves else ()
        keys = tuple(self.keys[i] for i in positions)
        return replace(self, members=members, keys=keys, curves=curves)
