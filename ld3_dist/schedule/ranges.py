"""The index ranges of samples, which do not move when counts change.

    validation            [0, V)                            V <= 10^6
    training of seed s    [(s + 1) 10^6, … + T)             T <= 10^6, s <= 998
    evaluation set r      [10^9 + r 10^7, … + N)            N <= 10^7

So a folder can grow: more pairs, seeds, samples or sets of samples leave all others where they are.
"""

from __future__ import annotations

SEED_STRIDE = 10**6
"""Distance between the training ranges of two seeds; the most pairs that one range holds."""

EVALUATION = 10**9
"""Index of the first evaluation sample."""

SET_STRIDE = 10**7
"""Distance between two sets of evaluation samples; the most samples that one set holds."""

MOST_SEEDS = 999
"""Seeds of a trial, so that the training ranges end where the evaluation begins."""

PAIRS, HELD = 100, 50
"""Teacher pairs to train on, and those held out, where nothing is said."""

Range = tuple[int, int]
"""A half-open range [start, stop) of indices."""


def valid_range(count: int) -> Range:
    """The samples that every member is validated on."""
    return 0, count


def train_range(seed: int, count: int) -> Range:
    """The samples that the members of a seed train on."""
    start = (seed + 1) * SEED_STRIDE
    return start, start + count


def eval_range(repeat: int, count: int) -> Range:
    """The samples of one evaluation set."""
    start = EVALUATION + repeat * SET_STRIDE
    return start, start + count


def tiles(span: Range, size: int) -> list[Range]:
    """The shards of a range: pieces of `size`, counted from its start; the last may be shorter."""
    start, stop = span
    return [(i, min(i + size, stop)) for i in range(start, stop, size)]


def learning_indices(train: int, valid: int) -> list[int]:
    """Samples to learn from without a sweep: those held out, then those to train on.

    They are those of a sweep with one seed, so that both learn the same.
    """
    return [*range(*valid_range(valid)), *range(*train_range(0, train))]
