"""Grids that follow trajectories are scored with the conditions that the model draws."""

from __future__ import annotations

import pytest
import torch
from schedules import one_thread  # noqa: F401
from slowly import few

import ld3_dist as ld3
from ld3_dist.core.sample import initial_state, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.schedule.evaluating import evaluate
from ld3_dist.schedule.sampling import draw_inputs
from ld3_dist.training_free import find_knots

FIRST_OF_TEACHING = 10**6
TEACHER = "ddim/6/karras"


@pytest.mark.parametrize("grid", few(["gits", "optimal-steps"], ["optimal-steps"]))
def test_evaluate_follows_the_classes_that_are_drawn(grid: str) -> None:
    """A conditional model: knots by hand from the noise and classes of teaching."""
    model = ld3.load_model("digits")
    rule, d = make_solver("ddim"), model.denoiser
    z, classes = draw_inputs(model, 5, range(FIRST_OF_TEACHING, FIRST_OF_TEACHING + 64))
    knots = find_knots(grid, d, rule, 4, x_T=initial_state(d, z), condition=classes)
    table = rule.tableau(d.noise, rule.coupled(d.noise, knots))
    indices = range(10**9, 10**9 + 16)
    pairs = ld3.teach(model, seed=5, teacher=TEACHER, indices=indices)
    with torch.no_grad():
        made = sample(d, table, initial_state(d, pairs.noise), pairs.condition)
    expected = float(((made - pairs.target) ** 2).flatten(1).mean(1).mean())
    frame = evaluate(
        model, [grid], 16, solver="ddim", nfe=4, seed=5, teacher=TEACHER, extractor="none"
    )
    assert frame["eval_loss"].iloc[1] == pytest.approx(expected, rel=1e-4)
