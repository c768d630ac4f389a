"""What learning is given, and what it yields: teacher pairs, settings, progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .denoiser import Condition, map_condition
from .errors import InputError, unknown
from .grid import Grid
from .learnable import COORDINATES
from .solver import Tableau


@dataclass(frozen=True)
class Pairs:
    """What the teacher made: unit-variance noise [M, *shape], decoded outputs [M, …], conditions of M rows."""

    noise: Tensor
    target: Tensor
    condition: Condition = None

    def __post_init__(self) -> None:
        if len(self.noise) != len(self.target):
            raise InputError(f"pairs: {len(self.noise)} noises but {len(self.target)} targets")

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, index: Tensor | slice) -> Pairs:
        return Pairs(self.noise[index], self.target[index], map_condition(lambda c: c[index], self.condition))

    def to(self, device: torch.device | str) -> Pairs:
        """The same pairs on a device."""
        return Pairs(
            self.noise.to(device), self.target.to(device), map_condition(lambda c: c.to(device), self.condition)
        )


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "lr": 0.005, "lr_times": 0.1, "lr_noise": 12.0, "epochs": 7, "knots_only": 2, "batch": 2, "patience": 5,
    },
}  # fmt: skip
"""What a preset sets where nothing else is said; "default" is LearnConfig itself."""

CHECKPOINTING = ("auto", "on", "off")


@dataclass(frozen=True)
class LearnConfig:
    """How to learn; `LearnConfig.of(preset, …)` for another preset's values.

    preset: "default": Adam with a full matrix (`descent`), or "paper": the published procedure (`published`).
    gamma: r = gamma d / NFE^2.  coordinate: "lambda" or "time".  offset_window: how far network times may move.
    coefficients: learn corrections to the coefficients too (default preset only).
    lr, lr_times, lr_coefficients: rates of gap logits, offsets, corrections; lr_noise: a fraction of the radius.
        In the paper preset the rate of the offsets is lr_times / N and that of the noise lr_noise / N.
    final_lr: what the rates decay to, as a fraction (default preset).  knots_only: first epochs without network times
        (paper preset).  epochs, batch, clip (norm of a gradient).
    patience: epochs without a better held-out loss until a member stops; in the paper preset, batches until the best
        parameters come back with smaller rates.
    checkpointing: "auto", "on" or "off": activations made again in the backward pass, see `objective`.
    """

    preset: str = "default"
    gamma: float = 0.001
    coordinate: str = "lambda"
    offset_window: float = 0.5
    coefficients: bool = False
    lr: float = 0.2
    lr_times: float = 0.05
    lr_coefficients: float = 0.03
    lr_noise: float = 0.3
    final_lr: float = 0.1
    knots_only: int = 0
    epochs: int = 40
    batch: int = 10
    patience: int = 20
    clip: float = 1.0
    checkpointing: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "seed" or isinstance(value, str | bool):
                continue
            low_ok = value > 0 if field.name in ("epochs", "batch", "patience", "clip") else value >= 0
            if not (math.isfinite(value) and low_ok):
                raise InputError(f"learn.{field.name} = {value}: must be finite and not negative (counts: at least 1)")
        for name, choices in (("preset", PRESETS), ("coordinate", COORDINATES), ("checkpointing", CHECKPOINTING)):
            if getattr(self, name) not in choices:
                raise unknown(f"learn.{name}", getattr(self, name), tuple(choices))
        if self.offset_window >= 1:
            raise InputError(f"learn.offset_window = {self.offset_window}: must lie in [0, 1)")
        if self.preset == "paper" and self.coefficients:
            raise InputError("learn.coefficients = true: the paper preset learns none; use preset: default")

    @classmethod
    def of(cls, preset: str = "default", **settings: Any) -> LearnConfig:
        """A preset with some settings changed. Raises InputError for an unknown preset or a bad setting."""
        if preset not in PRESETS:
            raise unknown("learn.preset", preset, tuple(PRESETS))
        return cls(preset=preset, **{**PRESETS[preset], **settings})

    def radius(self, shape: tuple[int, ...], nfe: int) -> float:
        """r = gamma d / NFE^2, in unit-variance noise."""
        return self.gamma * math.prod(shape) / nfe**2

    def samples(self, train: int, valid: int) -> int:
        """Samples a member sends through the network at most, counting a backward pass as two more."""
        if self.preset == "paper":  # the noise's moves are checked, and every batch is followed by a validation
            moves = 1 if self.gamma else 0
            return self.epochs * (train * (3 + moves) + -(-train // self.batch) * valid) + valid
        return self.epochs * (train * 3 + valid) + valid


@dataclass(frozen=True)
class Progress:
    """State after an epoch (0: the start). Losses [K]; best grid and tableau [K, …] by held-out hard loss."""

    epoch: int
    train: Tensor
    valid: Tensor
    best_valid: Tensor
    best_epoch: Tensor
    best: Grid
    tableau: Tableau
    network_evals: int
    """Network evaluations spent so far, in samples."""
    snapshot: Callable[[], dict[str, Tensor]]
    """The run's whole state at this point, to `learn(…, resume=…)` from; valid until the next epoch begins."""
