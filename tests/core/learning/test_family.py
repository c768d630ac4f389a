"""The procedure of the curve: its gradient, its selection, resuming, packing, and the ball."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3_dist.core.distance import Elementwise
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.curve import Curve
from ld3_dist.core.learning.family import (
    CurveConfig,
    CurveDescent,
    FamilyProgress,
    geometric,
)
from ld3_dist.core.learning.learn import Pairs, Problem, learn
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise, initial_state, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.models.analytic.mixture import mixture_2d

NFES = (3, 4, 6)
CONFIG = CurveConfig(procedure="curve", epochs=3, batch=4, points=5)
MIXTURE, SOLVER = mixture_2d(EDM()), make_solver("dpmpp-2")


def pairs(first: int, count: int) -> Pairs:
    noise = draw_noise(0, range(first, first + count), MIXTURE.shape).double()
    teacher = make_solver("unipc-3")
    knots = discretize(EDM(), 12, "karras")
    table = teacher.tableau(EDM(), teacher.coupled(EDM(), knots))
    with torch.no_grad():
        return Pairs(noise, sample(MIXTURE, table, initial_state(MIXTURE, noise)))


def problem(*names: str, seeds: tuple[int, ...] = (0, 1)) -> Problem:
    starts = {nfe: torch.stack([discretize(EDM(), nfe, name) for name in names]) for nfe in NFES}
    return Problem(
        MIXTURE, SOLVER, starts[6], pairs(0, 8), pairs(100, 6), Elementwise(2), 6,
        seeds[: len(names)], None, starts,
    )  # fmt: skip


def last(run: Any) -> FamilyProgress:
    progress = list(run)[-1]
    assert isinstance(progress, FamilyProgress)
    return progress


def test_a_step_follows_the_gradient_of_the_log_loss() -> None:
    """Of the logarithm of the batch's mean, against finite differences."""
    run = CurveDescent(problem("karras"), replace(CONFIG, clip=1e9))
    generator = torch.Generator().manual_seed(3)  # offsets have a kink at zero
    draw = lambda p: 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    run.grids.set({name: draw(value) for name, value in run.grids.values().items()})
    seen: list[Tensor] = []
    run.descend = lambda rate: seen.extend(  # type: ignore[method-assign]
        p.grad.clone() for p, _ in run.learned if p.grad is not None
    )
    batch = torch.tensor([[0, 3, 5]])
    run.step(batch, run.members(), 1, 1.0)

    def log_loss() -> float:
        with torch.no_grad():
            table = run.grids.tableau(NFES[1])[1].take([0])
            made = sample(MIXTURE, table, initial_state(MIXTURE, run.train.noise[batch]))
        loss = run.problem.distance(made[0], run.train.target[batch[0]])
        return float(loss.double().mean().log())

    for (parameter, _), gradient in zip(run.learned, seen, strict=True):
        for i in range(parameter.shape[1]):
            ends = []
            for move in (1e-4, -2e-4):
                with torch.no_grad():
                    parameter[0, i] += move
                ends.append(log_loss())
            with torch.no_grad():
                parameter[0, i] += 1e-4
            slope = (ends[0] - ends[1]) / 2e-4
            assert gradient[0, i].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_every_nfe_counts_alike() -> None:
    """Selection is by the geometric mean over the NFEs, of the losses that the grids have."""
    found = last(learn(problem("log_snr", "karras"), CONFIG))
    expected = found.each_best.log().mean(0).exp()
    torch.testing.assert_close(found.best_valid, expected)
    held = pairs(100, 6)
    for f, nfe in enumerate(NFES):
        alone = found.at(nfe)
        assert alone.best.steps == nfe
        for k in range(2):
            with torch.no_grad():
                made = sample(
                    MIXTURE, alone.tableau.take([k]), initial_state(MIXTURE, held.noise[None])
                )
            loss = Elementwise(2)(made[0], held.target).double().mean().item()
            assert found.each_best[f, k].item() == pytest.approx(loss, rel=1e-6)
    assert bool((found.best_valid < next(learn(problem("log_snr", "karras"), CONFIG)).valid).all())
    assert sum(found.at(n).network_evals for n in NFES) == found.network_evals


@pytest.mark.parametrize(("gamma", "start"), [(0.0, False), (0.05, False), (0.0, True)])
def test_a_resumed_run_ends_as_the_first_would_have(gamma: float, start: bool) -> None:
    config = replace(CONFIG, gamma=gamma, start_time=start)
    given = problem("log_snr", "karras")
    whole, snapshot = None, {}
    for whole in learn(given, config):
        if whole.epoch == 1:
            snapshot = whole.snapshot()
    again = last(learn(given, config, resume=(1, snapshot)))
    assert isinstance(whole, FamilyProgress)
    assert again.each_best.equal(whole.each_best)
    assert again.network_evals == whole.network_evals
    for nfe in (*NFES, 5):
        assert again.curve.grid(nfe).knots.equal(whole.curve.grid(nfe).knots)


def test_members_learn_together_as_they_do_alone() -> None:
    both = last(learn(problem("log_snr", "karras"), CONFIG))
    alone = last(learn(problem("log_snr"), CONFIG))
    torch.testing.assert_close(both.each_best[:, :1], alone.each_best, rtol=1e-6, atol=0)


def test_members_that_begin_later_learn_together_with_others() -> None:
    """A start time beside members that begin at t_max changes nothing for them, and is learned."""
    given = problem("log_snr", "log_snr")
    both = last(learn(replace(given, later=(False, True)), CONFIG))
    for k, config in enumerate((CONFIG, replace(CONFIG, start_time=True))):
        alone = last(learn(replace(problem("log_snr"), seeds=(k,)), config))
        torch.testing.assert_close(both.each_best[:, k : k + 1], alone.each_best, rtol=1e-6, atol=0)
    grids = [both.curve.grid(nfe).knots[:, 0] for nfe in NFES]
    first = [Curve.like(EDM(), SOLVER, problem("log_snr").family, points=5, later=True)
             .grid(nfe).knots[0, 0] for nfe in NFES]  # fmt: skip
    assert all(knots[0] == EDM().t_max for knots in grids)
    assert all(knots[1] != begun for knots, begun in zip(grids, first, strict=True))


def test_noise_moves_within_the_ball_of_each_nfe() -> None:
    config = replace(CONFIG, gamma=0.05)
    run = CurveDescent(problem("log_snr", "karras"), config)
    end = list(run.run(1))[-1]
    away = run.moved.view(len(NFES), 2, 8, -1) - run.train.noise[run.pool].flatten(2)
    length = away.norm(dim=-1)
    for f, nfe in enumerate(NFES):
        radius = config.radius(MIXTURE.shape, nfe)
        assert 0 < length[f].max() <= radius * (1 + 1e-6)
        assert 0 < end.at(nfe).moved.min() <= end.at(nfe).moved.max() <= radius
    assert end.at(NFES[0]).moved.max() > end.at(NFES[-1]).moved.max()  # the ball is larger there


def test_a_member_whose_loss_is_not_finite_does_not_disturb_the_others() -> None:
    broken = problem("log_snr", "karras")
    target = broken.train.target.clone()
    target[0] = torch.nan
    train = Pairs(torch.cat([broken.train.noise, broken.train.noise[:1]]),
                  torch.cat([broken.train.target, target[:1]]))  # fmt: skip
    subsets = torch.stack([torch.arange(8), torch.tensor([8, 1, 2, 3, 4, 5, 6, 7])])
    found = last(learn(replace(broken, train=train, subsets=subsets), CONFIG))
    alone = last(learn(problem("log_snr"), CONFIG))
    torch.testing.assert_close(found.each_best[:, :1], alone.each_best, rtol=1e-6, atol=0)


def test_the_geometric_mean() -> None:
    each = torch.tensor([[1.0, 2.0], [4.0, torch.inf]]).double()
    assert geometric(each).tolist() == [pytest.approx(2.0), torch.inf]
