"""What learning is given, and what it yields: teacher pairs, settings, progress."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ..errors import InputError, unknown
from .learnable import COORDINATES

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "lr": 0.005,
        "lr_times": 0.1,
        "lr_noise": 12.0,
        "epochs": 7,
        "knots_only": 2,
        "batch": 2,
        "patience": 5,
    },
}
"""What a preset sets where nothing else is said; "default" is LearnConfig itself."""

CHECKPOINTING = ("auto", "on", "off")


@dataclass(frozen=True)
class LearnConfig:
    """How to learn; `LearnConfig.of(preset, …)` for another preset's values.

    preset: "default": Adam with a full matrix (`descent`), or "paper": the published procedure
        (`published`).
    gamma: r = gamma d / NFE^2.  coordinate: "lambda" or "time".  offset_window: how far network
                                 times may move.
    coefficients: learn corrections to the coefficients too (default preset only).
    lr, lr_times, lr_coefficients: rates of gap logits, offsets, corrections; lr_noise: a fraction
        of the radius. In the paper preset the rate of the offsets is lr_times / N and that of the
        noise lr_noise / N.
    final_lr: what the rates decay to, as a fraction (default preset).  knots_only: first epochs
        without network times (paper preset).  epochs, batch, clip (norm of a gradient).
    patience: epochs without a better held-out loss until a member stops; in the paper preset,
        batches until the best parameters come back with smaller rates.
    checkpointing: "auto", "on" or "off": activations made again in the backward pass, see
    `objective`."""

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
            low_ok = (
                value > 0 if field.name in ("epochs", "batch", "patience", "clip") else value >= 0
            )
            if not (math.isfinite(value) and low_ok):
                raise InputError(
                    f"learn.{field.name} = {value}: must be finite and not negative (counts: at "
                    f"least 1)"
                )
        for name, choices in (
            ("preset", PRESETS),
            ("coordinate", COORDINATES),
            ("checkpointing", CHECKPOINTING),
        ):
            if getattr(self, name) not in choices:
                raise unknown(f"learn.{name}", getattr(self, name), tuple(choices))
        if self.offset_window >= 1:
            raise InputError(f"learn.offset_window = {self.offset_window}: must lie in [0, 1)")
        if self.preset == "paper" and self.coefficients:
            raise InputError(
                "learn.coefficients = true: the paper preset learns none; use preset: default"
            )

    @classmethod
    def of(cls, preset: str = "default", **settings: Any) -> LearnConfig:
        """A preset with some settings changed. Raises InputError for an unknown preset or a bad
        setting.
        """
        if preset not in PRESETS:
            raise unknown("learn.preset", preset, tuple(PRESETS))
        return cls(preset=preset, **{**PRESETS[preset], **settings})

    def radius(self, shape: tuple[int, ...], nfe: int) -> float:
        """r = gamma d / NFE^2, in unit-variance noise."""
        return self.gamma * math.prod(shape) / nfe**2

    def samples(self, train: int, valid: int) -> int:
        """Samples a member sends through the network at most, counting a backward pass as two more."""
        if (
            self.preset == "paper"
        ):  # the noise's moves are checked, and every batch is followed by a validation
            moves = 1 if self.gamma else 0
            return self.epochs * (train * (3 + moves) + -(-train // self.batch) * valid) + valid
        return self.epochs * (train * 3 + valid) + valid
