"""A learned start time in a sweep: evaluations and lost schedules know where sampling starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain_sweep import sweep
from tiny_sweep import changed, lasting

import ld3_dist as ld3
from ld3_dist.store.opening import open_storage
from ld3_dist.store.pairs import load_pairs, unpack_condition
from ld3_dist.tasks.schedules import schedule_name


def settings_of(start_time: bool, *starts: str) -> dict[str, Any]:
    members = {"seeds": 1, **({"starts": starts} if starts else {})}
    return {
        "learn": {"epochs": 4, "batch": 4, "start_time": start_time},
        "search": {"rounds": 1, "grid": {}, "optuna": {}, "members": members},
        "solvers": ["dpmpp-2"],
        "nfe": [3],
    }


every_way = pytest.mark.parametrize(
    "settings",
    [settings_of(True), settings_of(False, "log_snr", "later:log_snr")],
    ids=["all", "one of two members"],
)


@every_way
def test_the_evaluation_samples_from_the_learned_start(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    storage = open_storage(tmp_path / "out")
    plan = sweep(storage, changed(**settings, evaluate={"rows": "all", "samples": 8}))
    frame = ld3.load_results(tmp_path / "out")
    model = ld3.load_model("analytic:mixture-2d")
    folder = storage.child(f"pairs/{plan.teacher_key(plan.models[0])}")
    pairs = load_pairs(folder, *plan.eval_range)
    moved = 0
    for row in frame[frame["kind"] == "learned"].to_dict("records"):
        schedule = ld3.load_schedule(tmp_path / "out" / schedule_name(row["key"]))
        later = settings["learn"]["start_time"] or row["start"] == "later:log_snr"
        assert (schedule.knots[0] < model.noise.t_max) == later
        moved += later
        y = x_T = schedule.prior_scale * pairs["noise"]  # the loop of the README, without our own
        outputs: list[torch.Tensor] = []
        for i, t in enumerate(schedule.evals):
            at = torch.full((len(y),), t)
            outputs.append(model.denoiser(y, at, unpack_condition(pairs)))
            terms = (c * m for c, m in zip(schedule.outputs[i + 1], outputs, strict=False))
            y = schedule.state[i + 1] * x_T + sum(terms, torch.zeros_like(y))
        loss = (y - pairs["target"]).square().flatten(1).mean(1).mean().item()
        assert row["eval_loss"] == pytest.approx(loss, rel=1e-3)
    assert moved


@every_way
def test_a_lost_schedule_is_learned_again(tmp_path: Path, settings: dict[str, Any]) -> None:
    storage = open_storage(tmp_path / "out")
    sweep(storage, changed(**settings))
    before = lasting(tmp_path / "out")
    for file in (tmp_path / "out" / "schedules").iterdir():
        file.unlink()
    sweep(storage, changed(**settings))
    again = lasting(tmp_path / "out")
    assert list(again["knots"].map(list)) == list(before["knots"].map(list))
    for key in again[again["kind"] == "learned"]["key"]:
        assert ld3.load_schedule(tmp_path / "out" / schedule_name(key)).row == key
