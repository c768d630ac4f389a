"""Collapsed modes and instability are found in rows that are ok."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from ld3_dist.store.symptoms import counted_signs, excess, symptoms


def row(key: str, recall: float | None, curve: list[float] | None, **more: str) -> dict:
    known = {"key": key, "cell": "a", "kind": "learned", "status": "ok"}
    return known | {"metric.modes.recall": recall, "valid_curve": curve} | more


def test_signs_are_told_apart() -> None:
    frame = pd.DataFrame(
        [
            row("grid", 1.0, None, kind="baseline"),
            row("grid of b", 0.5, None, kind="baseline", cell="b"),
            row("well", 1.0, [3.0, 2.0, 2.5, 1.0]),
            row("fewer modes", 0.75, [3.0, 2.0]),
            row("no worse than the grids", 0.5, [1.0, 0.5], cell="b"),
            row("ends high", None, [1.0, 0.1, 0.5]),
            row("broken anyway", 0.1, [1.0, 9.0], status="diverged"),
        ]
    )
    found = {one.key: one.sign for one in symptoms(frame)}
    assert found == {
        "fewer modes": "mode collapse",
        "no worse than the grids": "lost modes",
        "ends high": "unstable",
    }
    assert counted_signs(symptoms(frame)) == {"mode collapse": 1, "lost modes": 1, "unstable": 1}
    assert symptoms(frame)[0].detail == "75% of the modes, hand-made grids 100%"


def test_sweeps_without_the_metric_have_no_sign_of_lost_modes() -> None:
    frame = pd.DataFrame([row("one", None, [2.0, 1.0])]).drop(columns="metric.modes.recall")
    assert symptoms(frame) == []


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([4.0, 2.0, 1.0], 1.0),
        ([4.0, 2.0, 9.0, 1.0], 1.0),
        ([4.0, 2.0, 5.0], 2.5),
        ([4.0, 2.0, math.nan, 1.0], math.inf),
        ([4.0, None, 1.0], math.inf),
        ([None, 4.0, 1.0], 1.0),
        ([math.inf], 1.0),
        (None, 1.0),
        ([0.0, 1.0], math.inf),
    ],
)
def test_excess_of_the_last_over_the_best(
    curve: list[float | None] | None, expected: float
) -> None:
    assert excess(curve) == expected
