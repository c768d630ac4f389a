"""`scale`: more data for the same questions, and the same experiment as the numbers written out."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_sweep import changed

from ld3_dist.core.errors import InputError
from ld3_dist.experiment import parse_experiment


def test_counts_are_multiplied_given_or_not() -> None:
    given = parse_experiment(changed(scale=3))
    assert (given.pairs.train, given.pairs.valid, given.evaluate.samples) == (24, 24, 120)
    short = {"models": ["digits"], "solvers": ["ddim"], "nfe": [4]}
    plain, larger = parse_experiment(short), parse_experiment(short | {"scale": 4})
    assert larger.pairs.train == 4 * plain.pairs.train
    assert larger.evaluate.samples == 4 * plain.evaluate.samples
    assert larger.search == plain.search


def test_it_is_the_experiment_with_the_numbers_written_out() -> None:
    written = changed(pairs={"train": 24, "valid": 24}, evaluate={"samples": 120})
    given = parse_experiment(changed(scale=3))
    assert given.model_dump() == parse_experiment(written).model_dump()
    assert parse_experiment(given.model_dump(mode="json")) == given  # not multiplied again
    assert "scale" not in given.model_dump()


@pytest.mark.parametrize("scale", [0, -2, 1.5, True, "4", None, [2], 10_001])
def test_what_is_no_scale_is_refused_by_its_key(scale: Any) -> None:
    with pytest.raises(InputError, match="scale"):
        parse_experiment(changed(scale=scale))


def test_too_much_is_refused_by_the_key_that_it_makes_too_large() -> None:
    with pytest.raises(InputError, match=r"pairs\.train"):
        parse_experiment(changed(scale=10_000, pairs={"train": 9_000_000}))
    with pytest.raises(InputError, match=r"pairs\.train = 'many'"):
        parse_experiment(changed(scale=2, pairs={"train": "many"}))
