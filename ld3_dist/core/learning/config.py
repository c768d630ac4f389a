"""Settings of learning: one dataclass per procedure, each field with its range and its meaning.

The settings of a procedure derive from `LearnConfig`. Every field knows which values it accepts.
YAML, the command line, the axes of a search and Python are therefore checked in one place, and the
columns of the result tables follow from the fields.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, unknown
from .learnable import COORDINATES

CHECKPOINTING = ("auto", "always", "never")

MOST = 1e7
"""Counts are below this; more is a slip of the keyboard, and would never end."""


def setting(
    default: Any,
    meaning: str,
    *,
    low: float = 0.0,
    below: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a LearnConfig.

    Args:
        default: the value if none is given; its type is the field's type.
        meaning: one sentence, for the help and the columns of the tables.
        low, below: a number must lie in [low, below).
        choices: the words that are allowed.
    """
    limits = {"meaning": meaning, "low": low, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=limits)


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """Settings that every procedure has; a procedure may add its own and change the defaults.

    Raises InputError for a value of another type or out of range; it names setting and value.
    """

    procedure: str = setting("default", "procedure of learning")
    gamma: float = setting(
        0.001, "radius of the noise ball as r = gamma d / NFE^2; 0 is hard teacher forcing"
    )
    coordinate: str = setting(
        "lambda", "coordinate of learning: lambda or time", choices=COORDINATES
    )
    offset_window: float = setting(
        0.5,
        "how far a network time may move towards the next knot, as a fraction; 0: not at all",
        below=1.0,
    )
    lr: float = setting(0.2, "learning rate of the gap logits", low=1e-300)
    lr_times: float = setting(0.05, "learning rate of the network times' offsets")
    lr_noise: float = setting(0.3, "longest step of the moved noise, as a fraction of the radius")
    epochs: int = setting(40, "epochs of learning asked for", low=1, below=MOST)
    batch: int = setting(10, "training pairs of one step", low=1, below=MOST)
    patience: int = setting(
        20, "epochs without a better held-out loss after which a member stops", low=1, below=MOST
    )
    clip: float = setting(1.0, "largest norm of a gradient", low=1e-300)
    checkpointing: str = setting(
        "auto",
        "activations made again in the backward pass: auto (by the free memory), always or never",
        choices=CHECKPOINTING,
    )
    seed: int = setting(0, "seed of the order of the batches", below=2.0**63)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))

    @classmethod
    def searchable(cls) -> tuple[str, ...]:
        """The names of the settings that may be given and searched.

        These are all but the seed, which the sweep sets.
        """
        return tuple(field.name for field in dataclasses.fields(cls) if field.name != "seed")

    @classmethod
    def of(cls, **settings: Any) -> LearnConfig:
        """The default settings with some changed.

        Raises InputError for a name that the procedure does not have.
        """
        for name in settings:
            if name not in cls.__dataclass_fields__:
                raise unknown("setting learn." + name + ": key of learn", name, cls.searchable())
        return cls(**settings)

    def radius(self, shape: tuple[int, ...], nfe: int) -> float:
        """The radius r = gamma d / NFE^2 of the ball, in unit-variance noise."""
        return self.gamma * math.prod(shape) / nfe**2

    def samples(self, train: int, valid: int) -> int:
        """The most samples that a member sends through the network.

        A backward pass counts as two.
        """
        return self.epochs * (train * 3 + valid) + valid


def checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the field's type; 1 and 1.0 are the same setting.

    Raises InputError for a value that the field does not accept.
    """
    name, kind = field.name, type(field.default)
    limits = {"low": -math.inf, "below": math.inf, "choices": ()} | dict(field.metadata)
    said = f"learn.{name} = {value!r}"
    if kind is bool or kind is str:
        if not isinstance(value, kind):
            raise InputError(f"{said}: must be {'true or false' if kind is bool else 'a word'}")
        if limits["choices"] and value not in limits["choices"]:
            raise unknown(f"learn.{name}", value, limits["choices"])
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise InputError(f"{said}: must be {'a whole number' if kind is int else 'one number'}")
    low, below = limits["low"], limits["below"]
    if not low <= value < below:  # NaN is neither; infinity is never below
        upper = f" and below {below:.19g}" if math.isfinite(below) else " and finite"
        least = "above 0" if 0 < low < 1 else f"at least {low:g}"
        raise InputError(f"{said}: must be {least}{upper}")
    return kind(value)
