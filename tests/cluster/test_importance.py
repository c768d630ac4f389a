"""Importance of axes: the axis that moves the loss has the largest share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ld3_dist.cluster.search.importance import axes_of, importance_table
from ld3_dist.experiment.reading import parse_experiment
from ld3_dist.tasks.planning import make_plan


def results(**columns: Any) -> list[dict[str, Any]]:
    """Twenty-four trials of two members in one cell; the loss follows gamma, hardly lr."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for trial in range(24):
        gamma, lr = [0.0, 0.01, 0.1][trial % 3], float(rng.uniform(0.03, 0.3))
        for seed in range(2):
            loss = float(np.exp(20 * gamma + 0.3 * lr + 0.01 * rng.normal()))
            rows.append(
                {
                    "cell": "c", "kind": "learned", "status": "ok", "trial": f"t{trial}",
                    "seed": seed, "start": "karras", "gamma": gamma, "lr": lr, "distance": "l2",
                    "teacher": "t", "valid_pairs": 50, "valid_loss": loss, "eval_loss": loss,
                }
                | {name: value(trial) for name, value in columns.items()}
            )  # fmt: skip
    return rows


AXES = {"gamma": "gamma", "lr": "lr"}


def test_the_axis_that_moves_the_loss_has_the_largest_share() -> None:
    table = importance_table(results(), AXES)
    shares = {row["axis"]: row["importance"] for row in table}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["gamma"] > 0.9
    assert {row["trials"] for row in table} == {24}


def test_losses_that_do_not_compare_are_left_out() -> None:
    frame = results(distance=lambda trial: ["l1", "l2"][trial % 2], eval_loss=lambda trial: None)
    assert importance_table(frame, AXES) == []
    fresh = results(distance=lambda trial: ["l1", "l2"][trial % 2])
    assert len(importance_table(fresh, AXES)) == 2


def test_few_trials_say_nothing() -> None:
    assert importance_table(results()[:6], AXES) == []


def test_axes_are_those_with_several_values() -> None:
    base: dict[str, Any] = {"models": ["analytic:mixture-2d"], "solvers": ["ddim"], "nfe": [3]}
    search = {"grid": {"gamma": [0, 0.1], "epochs": [3]}, "optuna": {"lr": {"low": 0.1, "high": 1}}}
    assert axes_of(make_plan(parse_experiment(base | {"search": search}))) == AXES
    ablate = {"base": {"epochs": 3}, "vary": {"pairs.train": [10, 20]}}
    plan = make_plan(parse_experiment(base | {"ablate": ablate}))
    assert axes_of(plan) == {"pairs.train": "train_pairs"}
