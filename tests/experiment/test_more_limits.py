"""What settings multiply to, and characters that nobody sees."""

from __future__ import annotations

import pytest
from tiny_sweep import changed

from ld3_dist.core.errors import InputError
from ld3_dist.experiment import parse_experiment


def test_shards_without_number_are_refused() -> None:
    pairs = {"train": 1_000_000, "valid": 1_000_000}
    with pytest.raises(InputError, match=r"resources\.shard = 1: 3,000,040 pairs .*larger"):
        parse_experiment(changed(pairs=pairs, resources={"shard": 1}))  # two seeds, 40 samples
    assert parse_experiment(changed(pairs=pairs, resources={"shard": 4096}))


@pytest.mark.parametrize("unseen", ["\u202e", "\u200b", "\u2066", "\u200f"])
@pytest.mark.parametrize("key", ["name", "models"])
def test_names_hold_nothing_that_is_not_seen(key: str, unseen: str) -> None:
    name = f"a{unseen}b"
    value = name if key == "name" else [{"model": "analytic:mixture-2d", "name": name}]
    with pytest.raises(InputError, match=r"name = "):
        parse_experiment(changed(**{key: value}))
    assert parse_experiment(changed(models=[{"model": "analytic:mixture-2d", "name": "é 中"}]))
