"""Conditions of samples: classes, prompts, and the scale of guidance.

The condition of sample i is a pure function of (seed, i), like its noise, whatever the batch or the
machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.denoiser import Condition
from ..core.errors import InputError
from ..core.sample import sample_generator
from ..core.text import read_lines
from .options import ModelOptions, without

PROMPTS_FILE = "a text file of prompts, one a line"
CLASSES_FILE = "a text file of class numbers"

LONGEST_LIST = 64_000_000
"""The most bytes of a file of prompts or classes."""

DrawCondition = Callable[[int, Sequence[int]], Condition]
"""(seed, indices [M]) -> the condition of these samples, batch first, on the CPU; None for an
unconditional model."""

DrawPrompts = Callable[[int, Sequence[int]], list[str]]
"""(seed, indices [M]) -> the prompts of these samples."""


def no_condition(seed: int, indices: Sequence[int]) -> Condition:
    """The condition of an unconditional model."""
    return None


def draw_class(classes: Sequence[int]) -> DrawCondition:
    """A function that draws one of `classes` for every sample: int64 [M].

    The draw is uniform, and every sample has its own generator.
    """
    table = torch.tensor(list(classes), dtype=torch.int64)

    def draw(seed: int, indices: Sequence[int]) -> Condition:
        picks = [
            torch.randint(len(table), (), generator=sample_generator(seed, i, "condition"))
            for i in indices
        ]
        return table[torch.stack(picks)] if picks else table[:0]

    return draw


def conditional_on(trained: bool, options: ModelOptions, model: str) -> bool:
    """True if a model is to be conditioned; InputError for options it was not trained for."""
    if not trained:
        without(["negative_prompt"], options, model, "only to a model of prompts")
        for name in ("conditional", "guided", "prompts", "classes"):
            if getattr(options, name):
                key = "guidance" if name == "guided" else name
                raise InputError(
                    f"model {model!r} is unconditional: {key}={getattr(options, key)!r} does not "
                    f"apply to it; remove it"
                )
        return False
    wanted = options.conditional is not False
    if not wanted and (options.guided or options.prompts or options.classes):
        raise InputError(
            f"model {model!r}: conditional=false contradicts guidance, prompts or classes; "
            f"remove one"
        )
    return wanted


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of a model.

    name: for the rows.
    draw: the condition of each sample.
    guidance: scale in use; None if there is nothing to guide by.
    null: the condition that stands for none, batch of 1, if guidance needs it.
    prompts: the prompt of each sample, if these are texts.
    """

    name: str
    draw: DrawCondition
    guidance: float | None = None
    null: Condition = None
    prompts: DrawPrompts | None = None


def on_classes(count: int, options: ModelOptions, model: str) -> Conditioning:
    """Conditioning of a network trained on `count` classes, 0 for an unconditional one.

    Raises InputError for options that ask for what the model was not trained for, and for classes
    it does not have."""
    without(["negative_prompt"], options, model, "only to a model of prompts")
    if not conditional_on(count > 0, options, model):
        return Conditioning("none", no_condition)
    guidance = 1.0 if options.guidance is None else options.guidance
    return Conditioning(
        conditioning_name("class", options),
        draw_class(read_classes(options, count, model)),
        guidance,
    )


def conditioning_name(kind: str, options: ModelOptions) -> str:
    """The name of a conditioning: "class" or "prompts", with name and hash of its file if any.

    The hash is part of the name because other prompts are another experiment.
    """
    file = options.prompts or options.classes
    if file is None:
        return kind
    lines = read_lines(file, PROMPTS_FILE if options.prompts else CLASSES_FILE, LONGEST_LIST)
    if not options.prompts:
        lines = " ".join(lines).split()
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{kind}:{Path(file).name}:{digest[:8]}"


def read_classes(options: ModelOptions, count: int, model: str) -> list[int]:
    """The classes to draw from: the list in options.classes, or all `count` of the model."""
    if options.prompts:
        raise InputError(
            f"model {model!r} is conditioned on classes: prompts={options.prompts!r} does not "
            f"apply to it"
        )
    if options.classes is None:
        return list(range(count))
    words = " ".join(read_lines(options.classes, CLASSES_FILE, LONGEST_LIST)).split()
    for word in words:
        if not (word.isdecimal() and int(word) < count):
            raise InputError(
                f"{options.classes}: class {word!r} is not a number from 0 to {count - 1}"
            )
    return [int(word) for word in words]
