"""Gains on fresh samples in the results: against which grid, and made again where it changed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ld3_dist.metrics.paired import ratios
from ld3_dist.store.gains import share_between_rows, with_fresh_gains

RNG = np.random.default_rng(0)
NOISE = np.exp(RNG.normal(size=300))
LOSSES = {
    "grid-a": NOISE * 2.0,
    "grid-b": NOISE * RNG.uniform(2, 4, 300),
    "one": NOISE * RNG.uniform(0.5, 1.5, 300),
    "two": NOISE * RNG.uniform(1, 3.2, 300),
}


def results(over: str | None, **ends: float) -> pd.DataFrame:
    """Two grids and two learned rows of a cell, with a stored interval against `over`."""
    rows: list[dict[str, Any]] = []
    for i, (key, x) in enumerate(LOSSES.items()):
        kind = "baseline" if key.startswith("grid") else "learned"
        rows.append(
            {
                "key": key, "kind": kind, "cell": "c", "status": "ok", "start": key,
                "knots": [3.0, 2.0 - i, 0.0], "evaluation": "e", "eval_loss": x.mean(),
                "eval_loss_median": np.median(x), "eval_loss_iqm": np.sort(x)[75:225].mean(),
                "eval_gain_over": over if kind == "learned" else None,
                "eval_gain_low": ends.get("low", 0.5), "eval_gain_high": ends.get("high", 5.0),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def never(keys: Collection[str]) -> dict[str, np.ndarray]:
    raise AssertionError(f"losses of {keys} were read")


def kept(keys: Collection[str]) -> dict[str, np.ndarray]:
    return {key: LOSSES[key] for key in keys if key in LOSSES}


def test_stored_intervals_stand_while_their_grid_is_the_best() -> None:
    frame = with_fresh_gains(results("grid-a"), never)
    learned = frame[frame["kind"] == "learned"]
    assert (learned["eval_gain_low"] == 0.5).all()
    assert not learned["decided"].any()
    for row in learned.to_dict("records"):
        x = LOSSES[row["key"]]
        assert row["eval_gain"] == pytest.approx(LOSSES["grid-a"].mean() / x.mean())
        assert row["eval_gain_median"] == pytest.approx(np.median(LOSSES["grid-a"]) / np.median(x))
    decided = with_fresh_gains(results("grid-a", low=1.1), never)["decided"]
    assert decided.iloc[2:].all()


@pytest.mark.parametrize("over", ["grid-b", None, "a grid of another folder"])
def test_intervals_are_made_again_against_the_best_grid(over: str | None) -> None:
    frame = with_fresh_gains(results(over), kept).set_index("key")
    _, low, high = ratios(np.stack([LOSSES["one"], LOSSES["two"]]), LOSSES["grid-a"])
    np.testing.assert_allclose(frame.loc[["one", "two"], "eval_gain_low"].astype(float), 1 / high)
    np.testing.assert_allclose(frame.loc[["one", "two"], "eval_gain_high"].astype(float), 1 / low)
    assert frame.at["one", "decided"]


def test_without_losses_there_is_no_interval() -> None:
    frame = with_fresh_gains(results("grid-b"), lambda keys: {})
    learned = frame[frame["kind"] == "learned"]
    assert learned["eval_gain"].notna().all()
    assert learned["eval_gain_low"].isna().all()
    assert learned["decided"].isna().all()


def test_other_evaluations_do_not_compare() -> None:
    frame = results("grid-a")
    frame.loc[frame["key"] == "grid-a", "evaluation"] = "another"
    again = with_fresh_gains(frame, kept)
    row = again[again["key"] == "one"].iloc[0]
    assert row["eval_gain"] == pytest.approx(LOSSES["grid-b"].mean() / LOSSES["one"].mean())


def test_a_grid_of_two_distances_is_evaluated_once() -> None:
    frame = results("grid-a")
    twin = frame.iloc[[0]].assign(key="twin", eval_loss=np.nan, evaluation=None)
    other = frame.iloc[[0]].assign(key="other", eval_loss=np.nan, evaluation=None)
    other.at[0, "knots"] = [3.0, 0.5, 0.0]
    both = pd.concat([frame, twin, other], ignore_index=True)
    shared = share_between_rows(both, ["eval_loss", "evaluation"]).set_index("key")
    assert shared.at["twin", "eval_loss"] == LOSSES["grid-a"].mean()
    assert shared.at["twin", "evaluation"] == "e"
    assert np.isnan(shared.at["other", "eval_loss"])  # other knots, though the name is the same


def test_a_grid_that_is_not_evaluated_yet_keeps_the_types_of_its_columns() -> None:
    """An evaluation that was stopped, where rows of grids do not stand side by side."""
    frame = results("grid-a").assign(samples=pd.array([None, 300, None, None], dtype="Int64"))
    twins = frame.iloc[:2].assign(key=["twin-a", "twin-b"], samples=pd.array([None] * 2, "Int64"))
    both = pd.concat([frame.iloc[[2, 0, 3, 1]], twins], ignore_index=True)
    shared = share_between_rows(both, ["samples"])
    assert shared["samples"].dtype == "Int64"
    assert shared["samples"].fillna(0).tolist() == [0, 0, 0, 300, 0, 300]
