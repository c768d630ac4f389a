"""The time that the GPU benchmark expects for more members, from those that it measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "experiments/benchmarks"))
from gpu import CALLS, OVERHEAD_S, expected


def row(members: int, s: float | None, activations: str = "kept") -> dict:
    found = {"members": members, "nfe": 4, "activations": activations}
    return found if s is None else found | {"s": s}


def test_the_line_through_the_last_two_points_goes_on() -> None:
    rows = [row(1, 9.0), row(8, 0.2), row(16, 0.3)]
    assert expected(rows, 32) == pytest.approx(CALLS * 0.5 + OVERHEAD_S)


def test_one_point_grows_in_proportion_and_none_costs_nothing() -> None:
    assert expected([row(8, 0.2)], 16) == pytest.approx(CALLS * 0.4 + OVERHEAD_S)
    assert expected([], 8) == 0.0


def test_times_that_fall_are_expected_again() -> None:
    assert expected([row(8, 0.4), row(16, 0.3)], 32) == pytest.approx(CALLS * 0.3 + OVERHEAD_S)


def test_every_kind_counts_until_its_memory_ends() -> None:
    rows = [row(8, 0.2), row(8, 0.1, "recomputed"), row(16, None), row(16, 0.2, "recomputed")]
    assert expected(rows, 32) == pytest.approx(CALLS * 0.4 + OVERHEAD_S)
