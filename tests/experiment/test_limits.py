"""Bounds and the rule for names, as the models of an experiment use them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ld3_dist.core.errors import InputError
from ld3_dist.core.text import file_name
from ld3_dist.experiment import limits


class Settings(BaseModel):
    name: limits.Name = "a"
    nfe: tuple[limits.Nfe, ...] = (3,)
    seed: limits.Seed = 0
    seeds: limits.SeedCount = 1
    count: limits.Count = 1
    rounds: limits.Rounds = 1
    guidance: limits.NotNegative | None = None
    shift: limits.Positive = 1.0
    deadline: limits.Seconds = 1.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nfe", [0]), ("nfe", [1001]), ("nfe", [True]), ("nfe", ["4"]), ("nfe", [10**30]),
        ("nfe", [2.5]),
        ("seed", -1), ("seed", 2**63), ("seed", True), ("seeds", 10**9), ("seeds", 0),
        ("count", 10**9), ("count", False), ("rounds", 10**9), ("guidance", "7"),
        ("guidance", True),
        ("guidance", -1), ("guidance", float("nan")), ("shift", 0), ("shift", float("inf")),
        ("deadline", 0), ("deadline", 1e30), ("name", ""), ("name", " "), ("name", "a "),
        ("name", "n" * 101), ("name", "a[b]"), ("name", "a]"), ("name", "a\\b"), ("name", "a\nb"),
        ("name", "a\x1bb"), ("name", "<b>"), ("name", "a|b"), ("name", 'a"b'), ("name", "a\u2028b"),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({key: value})
    (error,) = caught.value.errors()
    assert error["loc"][0] == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nfe", [1, 1000]), ("seed", 2**63 - 1), ("seeds", 999), ("guidance", 0),
        ("guidance", None),
        ("shift", 1e-3), ("name", "EDM (ImageNet, 64) v1.2"), ("name", "Größe/λ=0.5"),
        ("name", "n" * 100),
    ],
)  # fmt: skip
def test_what_is_in_bounds_is_taken_as_it_is(key: str, value: Any) -> None:
    found = getattr(Settings.model_validate({key: value}), key)
    assert found == (tuple(value) if isinstance(value, list) else value)


@given(st.text(max_size=120))
def test_a_name_is_safe_everywhere_or_refused(name: str) -> None:
    try:
        limits.check_name(name)
    except InputError:
        return
    if name:
        assert 0 < len(name) <= 100
        assert not set(name) & set("[]<>\\\n\r\t\0")
        assert len(file_name(name)) < 100


def test_a_search_has_a_size() -> None:
    limits.check_size(10, {"gamma": 100, "lr": 100}, 10_000, 10)
    with pytest.raises(InputError, match="3,000 of gamma x 3,000 of lr are 9,000,000 points"):
        limits.check_size(1, {"gamma": 3000, "lr": 3000}, 9_000_000)
    with pytest.raises(InputError, match=r"search\.rounds = 100,000: 20 cells x 10 points"):
        limits.check_size(20, {"gamma": 10}, 10, 100_000)
