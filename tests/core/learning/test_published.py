"""The published procedure: its steps against torch's own optimisers, its bound, its rules of
patience, its ball.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from slowly import few
from torch import Tensor

from ld3_dist.core.distance import Elementwise
from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.learn import LearnConfig, Pairs, Problem, learn, make_config
from ld3_dist.core.learning.published import LEAST_HITS, Published, PublishedGrid
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.models.analytic.mixture import Mixture, mixture_2d

NFE, SOLVER, L2 = 4, make_solver("ipndm-3"), Elementwise(2)
PAPER = make_config("paper")


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return mixture_2d(EDM())


@pytest.fixture(scope="module")
def pairs(mixture: Mixture) -> Pairs:
    noise = draw_noise(0, range(30), mixture.shape).double()
    solver = make_solver("unipc-3")
    tableau = solver.tableau(
        mixture.noise, solver.coupled(mixture.noise, discretize(mixture.noise, 24, "karras"))
    )
    return Pairs(noise, sample(mixture, tableau, mixture.noise.prior_scale * noise))


def session(
    mixture: Mixture, pairs: Pairs, config: LearnConfig = PAPER, members: int = 1
) -> Published:
    knots = discretize(mixture.noise, NFE, "log_snr").repeat(members, 1)
    made = Published(
        Problem(mixture, SOLVER, knots, pairs[:20], pairs[20:], L2, seeds=list(range(members))),
        config,
    )
    made.validate(0)
    return made


def test_settings_are_the_published_ones() -> None:
    assert (PAPER.lr, PAPER.lr_times, PAPER.lr_noise, PAPER.batch, PAPER.clip) == (
        0.005,
        0.1,
        12.0,
        2,
        1.0,
    )
    assert (PAPER.knots_only, PAPER.epochs, PAPER.patience, PAPER.offset_window) == (2, 7, 5, 0.5)
    assert PAPER.radius((3, 32, 32), 4) == pytest.approx(0.192)
    assert PAPER.radius((3, 32, 32), 10) == pytest.approx(0.0307, abs=5e-5)


def test_steps_are_those_of_rmsprop_and_sgd(mixture: Mixture, pairs: Pairs) -> None:
    """Five batches against torch.optim on parameters of its own, gradients taken through the same
    loss.
    """
    ours = session(mixture, pairs, replace(PAPER, gamma=0.0))
    theirs = PublishedGrid(
        mixture.noise, SOLVER, discretize(mixture.noise, NFE, "log_snr")[None], NFE
    )
    fast = torch.optim.RMSprop([theirs.logits], lr=0.005, momentum=0.9)
    slow = torch.optim.SGD([theirs.offsets], lr=0.1 / NFE)
    for i in range(5):
        index = torch.tensor([2 * i, 2 * i + 1])
        ours.batch(index[None], torch.tensor([0]), knots_only=False)
        fast.zero_grad()
        slow.zero_grad()
        made = sample(mixture, theirs.tableau()[1], mixture.noise.prior_scale * pairs.noise[index])[
            0
        ]
        (made - pairs.target[index]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_([theirs.logits], 1.0)
        torch.nn.utils.clip_grad_norm_([theirs.offsets], 1.0)
        fast.step()
        slow.step()
        # torch clips to 1 / (norm + 1e-6)
        torch.testing.assert_close(ours.grids.logits, theirs.logits, rtol=2e-6, atol=1e-8)
        torch.testing.assert_close(ours.grids.offsets, theirs.offsets, rtol=1e-5, atol=1e-8)


def test_knots_learn_before_network_times(mixture: Mixture, pairs: Pairs) -> None:
    run = session(mixture, pairs)
    for epoch in (1, 2):
        run.epoch(epoch)
        assert run.grids.offsets.abs().max() == 0
    assert run.grids.logits.std() > 0
    run.epoch(3)
    assert run.grids.offsets.abs().max() > 0


def test_offsets_keep_within_half_the_smallest_gap(mixture: Mixture) -> None:
    grid = PublishedGrid(mixture.noise, SOLVER, discretize(mixture.noise, NFE, "karras")[None], NFE)
    with torch.no_grad():
        grid.offsets[:] = torch.tensor([5.0, 5.0, -5.0, 0.01])
    made = grid.grid()
    lam, at = mixture.noise.lam(made.knots)[0], mixture.noise.lam(made.evals)[0]
    bound = 0.5 * lam.diff().min()
    torch.testing.assert_close(
        at - lam[:-1], torch.stack([0 * bound, bound, -bound, 0 * bound + 0.01])
    )


def test_patience_reloads_the_best_and_shrinks_the_rates(mixture: Mixture, pairs: Pairs) -> None:
    run = session(mixture, pairs, members=2)
    start = run.grids.logits.detach().clone()
    bad = torch.tensor([[3.0, 0, 0, -3]]).double()
    for i in range(1, 6):
        with torch.no_grad():
            run.grids.logits[1] = start[1] + bad[0] * (
                1 + i / 10
            )  # never better; member 0 stays as it is: never worse
        run.examine(3)
        assert int(run.state["worse"][1]) == i % 5
    torch.testing.assert_close(run.grids.logits.detach(), start)
    assert run.state["lr"][:, 0].tolist() == pytest.approx([0.004, 0.004])
    assert run.state["lr_times"][:, 0].tolist() == pytest.approx([0.08 / NFE] * 2)
    run.examine(1)  # a round of knots only leaves the rate of the times alone
    for _ in range(4):
        run.examine(1)
    assert run.state["lr"][0, 0] == pytest.approx(0.0032)
    assert run.state["lr_times"][0, 0] == pytest.approx(0.08 / NFE)


def test_it_ends_where_the_rates_cannot_shrink(mixture: Mixture, pairs: Pairs) -> None:
    run = session(mixture, pairs)
    run.state["lr_times"].fill_(1e-6)
    for _ in range(5 * LEAST_HITS - 1):
        run.examine(3)
    assert run.active == [0]
    run.examine(3)
    assert run.active == []


def test_noise_stays_in_its_ball_and_moves_only_downhill(mixture: Mixture, pairs: Pairs) -> None:
    still = replace(PAPER, lr=1e-300, lr_times=0.0, gamma=0.5)
    run = session(mixture, pairs, still)
    losses = lambda x: L2(
        sample(mixture, run.grids.tableau()[1], mixture.noise.prior_scale * x[None])[0],
        pairs[:20].target,
    )
    before = losses(pairs[:20].noise)
    for epoch in (1, 2, 3):
        run.epoch(epoch)
    moved = (run.moved[0] != pairs[:20].noise).any(1)
    assert moved.any()
    assert (run.moved[0] - pairs[:20].noise).norm(dim=1).max() <= run.radius * (1 + 1e-12)
    assert (losses(run.moved[0])[moved] < before[moved]).all()
    away = (run.moved[0] - pairs[:20].noise).norm(dim=1)
    torch.testing.assert_close(run.lengths()[0], away.mean().double())


@pytest.mark.parametrize("gamma", few([0.0, 0.05], [0.05]))
@pytest.mark.siblings(1)
def test_packed_members_equal_single_runs(mixture: Mixture, pairs: Pairs, gamma: float) -> None:
    config = replace(PAPER, gamma=gamma, epochs=4)
    knots = torch.stack([discretize(mixture.noise, NFE, name) for name in ("log_snr", "karras")])
    *_, both = learn(
        Problem(mixture, SOLVER, knots, pairs[:20], pairs[20:], L2, seeds=[3, 4]), config
    )
    for k in range(2):
        *_, alone = learn(
            Problem(mixture, SOLVER, knots[k], pairs[:20], pairs[20:], L2, seeds=[3 + k]), config
        )
        torch.testing.assert_close(both.best_valid[k], alone.best_valid[0], rtol=1e-10, atol=0)
        torch.testing.assert_close(both.best.evals[k], alone.best.evals[0], rtol=1e-9, atol=1e-12)


def test_it_learns_and_counts(mixture: Mixture, pairs: Pairs) -> None:
    steps = list(
        learn(
            Problem(
                mixture,
                SOLVER,
                discretize(mixture.noise, NFE, "log_snr"),
                pairs[:20],
                pairs[20:],
                L2,
            ),
            PAPER,
        )
    )
    assert [p.epoch for p in steps] == list(range(8))
    assert steps[-1].best_valid < 0.7 * steps[0].valid
    # start; then 7 rounds of 10 batches, each forward, the check of the move, and a validation of
    # 10
    assert steps[-1].network_evals == NFE * (10 + 7 * (20 * 2 + 10 * 10))


def test_what_the_preset_cannot_do() -> None:
    with pytest.raises(
        InputError, match=r"learn\.coefficients: procedure paper has no such setting"
    ):
        make_config("paper", coefficients=True)
    with pytest.raises(InputError, match=r"unknown procedure 'papr': did you mean 'paper'"):
        make_config("papr")


@pytest.mark.parametrize("procedure", ["default", "paper"])
@pytest.mark.parametrize("gamma", few([0.0, 0.2], [0.2]))
@pytest.mark.siblings(1)
def test_a_run_resumed_from_its_snapshot_ends_the_same(
    mixture: Mixture, pairs: Pairs, procedure: str, gamma: float
) -> None:
    """From every epoch on, to the last bit; the snapshot holds tensors only."""
    asked = {"coefficients": True} if procedure == "default" else {}
    config = make_config(procedure, epochs=5, gamma=gamma, **asked)
    knots = torch.stack([discretize(mixture.noise, NFE, name) for name in ("log_snr", "karras")])
    problem = Problem(mixture, SOLVER, knots, pairs[:20], pairs[20:], L2, seeds=[1, 2])
    kept: list[dict[str, Tensor]] = []
    for whole in learn(problem, config):
        kept.append(whole.snapshot())
    assert all(isinstance(value, Tensor) for value in kept[0].values())
    for epoch in range(5):
        *_, end = learn(problem, config, resume=(epoch, kept[epoch]))
        assert end.best_valid.equal(whole.best_valid)
        assert end.tableau.outputs.equal(whole.tableau.outputs)
        assert end.network_evals == whole.network_evals
    assert list(learn(problem, config, resume=(5, kept[5]))) == []
    other = replace(problem, knots=knots[:1], seeds=[1], subsets=None)
    with pytest.raises(InputError, match="does not belong"):
        next(learn(other, config, resume=(1, kept[1])))
    assert not math.isnan(float(whole.train[0]))
