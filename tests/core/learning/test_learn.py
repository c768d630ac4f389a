"""Learning: members do not see each other, moved noise obeys its ball, selection is hard, a NaN
spoils nothing else.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ld3_dist.core.denoiser import Condition
from ld3_dist.core.distance import Elementwise
from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.learning.descent import Descent
from ld3_dist.core.learning.learn import LearnConfig, Pairs, Problem, Progress, learn, make_config
from ld3_dist.core.learning.learnable import STIFF, corrected
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import Tableau, make_solver
from ld3_dist.models.analytic.mixture import Mixture, mixture_2d

NFE = 4
SOLVER = make_solver("ipndm-3")
L2 = Elementwise(2)
CONFIG = make_config(epochs=4, batch=5, lr=0.1, lr_times=0.1, seed=3)


def start_of(name: str, nfe: int = NFE) -> Tensor:
    return discretize(EDM(), nfe, name)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return mixture_2d(EDM())


def pairs_of(mixture: Mixture, start: int, stop: int, labels: bool = False) -> Pairs:
    """Teacher pairs in float64, 24 evaluations of a third-order solver."""
    noise = draw_noise(0, range(start, stop), mixture.shape).double()
    condition = torch.arange(start, stop) % 8 if labels else None
    solver = make_solver("unipc-3")
    tableau = solver.tableau(mixture.noise, solver.coupled(mixture.noise, start_of("karras", 24)))
    return Pairs(
        noise, sample(mixture, tableau, mixture.noise.prior_scale * noise, condition), condition
    )


@pytest.fixture(scope="module")
def train(mixture: Mixture) -> Pairs:
    return pairs_of(mixture, 20, 44)


@pytest.fixture(scope="module")
def valid(mixture: Mixture) -> Pairs:
    return pairs_of(mixture, 0, 20)


def last(progress: object) -> Progress:
    return list(progress)[-1]  # type: ignore[call-overload]


def hard_loss(mixture: Mixture, grid: Grid, pairs: Pairs) -> Tensor:
    """Mean distance to the teacher [K] from the pairs' own noise, computed here."""
    tableau = SOLVER.tableau(mixture.noise, grid)
    made = sample(mixture, tableau, mixture.noise.prior_scale * pairs.noise, pairs.condition)
    return (made - pairs.target).square().flatten(2).mean((1, 2))


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("coordinate", ["lambda", "time"])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.siblings(4)
def test_packed_members_equal_single_runs(
    mixture: Mixture, gamma: float, coordinate: str, labels: bool
) -> None:
    config = replace(CONFIG, gamma=gamma, coordinate=coordinate, coefficients=labels)
    train, valid = pairs_of(mixture, 20, 44, labels), pairs_of(mixture, 0, 20, labels)
    knots = torch.stack([start_of("karras"), start_of("log_snr"), start_of("karras")])
    close = {
        "rtol": 1e-9,
        "atol": 1e-9,
    }  # what is rounded differently grows by up to FLOOR^(-1/2) a step
    seeds, subsets = [11, 12, 13], torch.stack([torch.arange(10) + 7 * k for k in range(3)])
    packed = list(
        learn(
            Problem(mixture, SOLVER, knots, train, valid, L2, seeds=seeds, subsets=subsets), config
        )
    )
    for k in range(3):
        pairs = train[subsets[k]]
        problem = Problem(mixture, SOLVER, knots[k], pairs, valid, L2, seeds=[seeds[k]])
        alone = list(learn(problem, config))
        assert len(alone) == len(packed)
        for one, many in zip(alone, packed, strict=True):
            torch.testing.assert_close(one.valid[0], many.valid[k], **close)
            torch.testing.assert_close(one.best_valid[0], many.best_valid[k], **close)
            torch.testing.assert_close(one.train[0], many.train[k], **close, equal_nan=True)
        torch.testing.assert_close(alone[-1].best.knots[0], packed[-1].best.knots[k], **close)
        torch.testing.assert_close(alone[-1].best.evals[0], packed[-1].best.evals[k], **close)
        assert alone[-1].best_epoch[0] == packed[-1].best_epoch[k]
    assert packed[-1].network_evals == 3 * alone[-1].network_evals


@pytest.mark.parametrize("start", ["uniform", "karras", "log_snr"])
@pytest.mark.parametrize("gamma", [0.0, 0.05])
def test_never_worse_than_the_start_and_better_here(
    mixture: Mixture, train: Pairs, valid: Pairs, start: str, gamma: float
) -> None:
    steps = list(
        learn(
            Problem(mixture, SOLVER, start_of(start), train, valid, L2),
            replace(CONFIG, gamma=gamma, epochs=8),
        )
    )
    best = torch.stack([p.best_valid for p in steps])
    assert (best.diff(dim=0) <= 0).all()
    assert best[0] == steps[0].valid
    assert best[-1] < 0.5 * best[0]
    assert steps[-1].best_epoch[0] == int(torch.stack([p.valid for p in steps]).argmin())


def test_steps_too_large_leave_the_start(mixture: Mixture, train: Pairs, valid: Pairs) -> None:
    good = last(
        learn(
            Problem(mixture, SOLVER, start_of("karras"), train, valid, L2),
            replace(CONFIG, epochs=20),
        )
    ).best.knots[0]
    wild = replace(CONFIG, lr=50.0, lr_times=50.0, epochs=3, final_lr=1.0)
    steps = list(learn(Problem(mixture, SOLVER, good, train, valid, L2), wild))
    assert all(p.valid > steps[0].valid for p in steps[1:])
    assert steps[-1].best_epoch[0] == 0
    torch.testing.assert_close(steps[-1].best.knots[0], good, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_selection_is_hard(mixture: Mixture, train: Pairs, valid: Pairs, gamma: float) -> None:
    """The reported held-out loss is that of the samples' own noise (r = 0), recomputed here from
    the returned grid.
    """
    end = last(
        learn(
            Problem(mixture, SOLVER, start_of("karras"), train, valid, L2),
            replace(CONFIG, gamma=gamma),
        )
    )
    torch.testing.assert_close(
        hard_loss(mixture, end.best, valid), end.best_valid, rtol=1e-10, atol=0
    )
    made = sample(mixture, end.tableau, mixture.noise.prior_scale * valid.noise)
    torch.testing.assert_close(
        (made - valid.target).square().mean((1, 2)), end.best_valid, rtol=1e-10, atol=0
    )


def test_the_start_is_the_first_candidate(mixture: Mixture, train: Pairs, valid: Pairs) -> None:
    first = next(learn(Problem(mixture, SOLVER, start_of("karras"), train, valid, L2), CONFIG))
    assert first.epoch == 0
    assert torch.isnan(first.train).all()
    grid = SOLVER.coupled(mixture.noise, start_of("karras")[None])
    torch.testing.assert_close(first.best.knots, grid.knots, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(first.valid, hard_loss(mixture, grid, valid), rtol=1e-9, atol=0)


def run_session(mixture: Mixture, train: Pairs, valid: Pairs, config: LearnConfig) -> Descent:
    session = Descent(Problem(mixture, SOLVER, start_of("karras")[None], train, valid, L2), config)
    for epoch in range(1, config.epochs + 1):
        session.epoch(epoch)
    return session


def test_moved_noise_stays_in_the_ball(mixture: Mixture, train: Pairs, valid: Pairs) -> None:
    config = replace(CONFIG, gamma=0.2, epochs=6, lr_noise=0.9)
    session = run_session(mixture, train, valid, config)
    assert session.radius == pytest.approx(0.2 * 2 / NFE**2)
    away = (session.state["kept"][0] - train.noise).flatten(1).norm(dim=1)
    assert away.max() <= session.radius * (1 + 1e-12)
    assert (
        away.max() > 0.999 * session.radius
    )  # 0.9 r a step: without the projection some would be outside
    assert train.noise.equal(pairs_of(mixture, 20, 44).noise)


def test_noise_moves_only_where_its_loss_falls(
    mixture: Mixture, train: Pairs, valid: Pairs
) -> None:
    """With the grid held still, every sample that moved is nearer to its target, and steps too far
    are refused.
    """
    still = replace(
        CONFIG, gamma=0.5, lr=1e-300, lr_times=0.0, epochs=3
    )  # a move is judged at the next visit
    for lr_noise in (0.05, 1.0):
        session = run_session(mixture, train, valid, replace(still, lr_noise=lr_noise))
        tableau = SOLVER.tableau(mixture.noise, SOLVER.coupled(mixture.noise, start_of("karras")))
        scale = mixture.noise.prior_scale
        before, after = (
            L2(sample(mixture, tableau, scale * x), train.target)
            for x in (train.noise, session.state["kept"][0])
        )
        moved = (session.state["kept"][0] != train.noise).any(1)
        assert moved.any()
        assert (after[moved] < before[moved]).all()
    assert not moved.all()


def test_a_move_is_no_longer_than_a_share_of_the_polyak_step(
    mixture: Mixture, train: Pairs, valid: Pairs
) -> None:
    """Down the gradient by 0.3 r, or by a quarter of the loss over the gradient's length."""
    config = replace(CONFIG, gamma=4.0, lr=1e-300, lr_times=0.0, epochs=1, lr_noise=0.3)
    session = run_session(mixture, train, valid, config)
    tableau = SOLVER.tableau(mixture.noise, SOLVER.coupled(mixture.noise, start_of("karras")))
    x = train.noise.clone().requires_grad_()
    loss = L2(sample(mixture, tableau, mixture.noise.prior_scale * x), train.target)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    reach = loss.detach() / gradient.norm(dim=1) / 4
    assert 0 < (reach < 0.3 * session.radius).sum() < len(reach)
    away = session.moved[0] - train.noise
    torch.testing.assert_close(away.norm(dim=1), reach.clamp_max(0.3 * session.radius))
    torch.testing.assert_close(
        away / away.norm(dim=1, keepdim=True), -gradient / gradient.norm(dim=1, keepdim=True)
    )


def test_progress_says_how_far_the_noise_has_moved(
    mixture: Mixture, train: Pairs, valid: Pairs
) -> None:
    """Zero at the start and at the first visits, whose moves are not judged yet; then the mean
    length of what was accepted, the same whether or not another member is packed beside it.
    """
    config = replace(CONFIG, gamma=0.2, epochs=6, lr_noise=0.9)
    problem = Problem(mixture, SOLVER, start_of("karras")[None], train, valid, L2)
    session = Descent(problem, config)
    found = torch.stack([p.moved for p in session.run()])[:, 0]
    away = (session.accepted()[0] - train.noise).flatten(1).norm(dim=1)
    assert found[0] == 0
    assert 0 < found[1] <= found[-1] <= session.radius
    torch.testing.assert_close(found[-1], away.mean().double())
    two = Problem(mixture, SOLVER, start_of("karras").expand(2, -1), train, valid, L2)
    packed = list(learn(two, config))
    torch.testing.assert_close(packed[0].moved, torch.zeros(2).double(), rtol=0, atol=0)
    torch.testing.assert_close(packed[-1].moved, found[-1].expand(2), rtol=1e-6, atol=0)


def test_gamma_zero_moves_nothing(mixture: Mixture, train: Pairs, valid: Pairs) -> None:
    session = run_session(mixture, train, valid, replace(CONFIG, gamma=0.0))
    assert session.state["kept"][0].equal(train.noise)


def test_network_evaluations_are_counted(mixture: Mixture, train: Pairs, valid: Pairs) -> None:
    """Forward passes of training and validation an epoch, and of the start: the noise moves at no
    cost.
    """
    for gamma in (0.0, 0.1):
        end = last(
            learn(
                Problem(mixture, SOLVER, start_of("karras"), train, valid, L2),
                replace(CONFIG, gamma=gamma),
            )
        )
        assert end.network_evals == NFE * (4 * len(train) + 5 * len(valid))


def test_early_stopping_by_patience(mixture: Mixture, train: Pairs, valid: Pairs) -> None:
    still = replace(CONFIG, lr=1e-300, lr_times=0.0, gamma=0.0, epochs=30, patience=3)
    steps = list(learn(Problem(mixture, SOLVER, start_of("karras"), train, valid, L2), still))
    assert [p.epoch for p in steps] == [0, 1, 2, 3]


def test_corrections_weigh_the_newest_output_and_the_differences() -> None:
    """A corrected table against the sum written out, with numbers for x_T and the outputs."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    E = 4
    table, given, x_T, m = (
        Tableau(draw(2, E), draw(2, E + 1), draw(2, E + 1, E).tril(-1)),
        draw(2, E, 1 + E),
        draw(()),
        draw(E),
    )
    made = corrected(table, given)
    torch.testing.assert_close(made.evals, table.evals, rtol=0, atol=0)
    for k in range(2):
        for i in range(E):
            c, a, b = STIFF * given[k, i, 0], STIFF * given[k, i, 1 + i], given[k, i, 1:]
            y = (1 + c) * table.state[k, i + 1] * x_T + table.outputs[k, i + 1] @ m + a * m[i]
            y = y + sum(b[j] * (m[j + 1] - m[j]) for j in range(i))
            torch.testing.assert_close(
                made.state[k, i + 1] * x_T + made.outputs[k, i + 1] @ m, y, rtol=1e-12, atol=1e-12
            )
            assert not made.outputs[k, i + 1, i + 1 :].any()  # nothing from the future


def test_coefficients_are_learned(mixture: Mixture, train: Pairs, valid: Pairs) -> None:
    """On a grid held still the coefficients alone bring the loss down, and the table that comes
    back has them.
    """
    still = replace(CONFIG, lr=1e-300, lr_times=0.0, gamma=0.0, epochs=10, lr_coefficients=0.01)
    fixed = last(learn(Problem(mixture, SOLVER, start_of("karras"), train, valid, L2), still))
    free = last(
        learn(
            Problem(mixture, SOLVER, start_of("karras"), train, valid, L2),
            replace(still, coefficients=True),
        )
    )
    assert free.best_valid < 0.9 * fixed.best_valid
    torch.testing.assert_close(free.best.knots, fixed.best.knots)
    plain = SOLVER.tableau(mixture.noise, free.best)
    assert not torch.allclose(plain.outputs, free.tableau.outputs, atol=1e-4)
    made = sample(mixture, free.tableau, mixture.noise.prior_scale * valid.noise)
    torch.testing.assert_close(
        (made - valid.target).square().mean((1, 2)), free.best_valid, rtol=1e-10, atol=0
    )


@pytest.mark.parametrize(
    "name", ["gamma", "lr", "lr_times", "lr_noise", "lr_coefficients", "final_lr"]
)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_rates_that_make_no_sense(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"learn\.{name} = "):
        make_config(**{name: value})


@pytest.mark.parametrize("name", ["epochs", "batch", "patience", "clip"])
def test_counts_that_make_no_sense(name: str) -> None:
    with pytest.raises(InputError, match=rf"learn\.{name} = 0: .*(at least 1|above 0)"):
        make_config(**{name: 0})


def test_bad_input(mixture: Mixture, train: Pairs, valid: Pairs) -> None:
    knots = start_of("karras")
    with pytest.raises(InputError, match="at least 2 training and 1 held-out pair, got 1 and 20"):
        next(learn(Problem(mixture, SOLVER, knots, train[:1], valid, L2)))
    with pytest.raises(InputError, match="got 24 and 0"):
        next(learn(Problem(mixture, SOLVER, knots, train, valid[:0], L2)))
    with pytest.raises(InputError, match="1 seeds for 2 members"):
        next(learn(Problem(mixture, SOLVER, knots.expand(2, -1), train, valid, L2, seeds=[0])))
    with pytest.raises(InputError, match="2 seeds for 1 members"):
        next(learn(Problem(mixture, SOLVER, knots, train, valid, L2, seeds=[0, 1])))
    with pytest.raises(InputError, match="coordinate"):
        next(
            learn(
                Problem(mixture, SOLVER, knots, train, valid, L2), make_config(coordinate="sigma")
            )
        )
    with pytest.raises(InputError, match="offset_window"):
        next(
            learn(Problem(mixture, SOLVER, knots, train, valid, L2), make_config(offset_window=1.5))
        )
    with pytest.raises(InputError, match="the grid has 4"):
        next(learn(Problem(mixture, SOLVER, knots, train, valid, L2, nfe=7)))
    with pytest.raises(InputError, match="24 noises but 23 targets"):
        Pairs(train.noise, train.target[:-1])
    with pytest.raises(InputError, match="knots"):
        next(learn(Problem(mixture, SOLVER, knots.flip(0), train, valid, L2)))


@pytest.mark.parametrize(
    "subsets", [torch.zeros(2, 8, dtype=torch.long), torch.arange(20, 40)[None]]
)
def test_subsets_that_do_not_fit(
    mixture: Mixture, train: Pairs, valid: Pairs, subsets: Tensor
) -> None:
    with pytest.raises(InputError, match="subsets"):
        next(learn(Problem(mixture, SOLVER, start_of("karras"), train, valid, L2, subsets=subsets)))


class Broken:
    """A denoiser that gives NaN for network times in [low, high]."""

    def __init__(self, inner: Mixture, low: float, high: float) -> None:
        self.inner, self.low, self.high = inner, low, high
        self.noise, self.shape, self.decode = inner.noise, inner.shape, inner.decode

    def __call__(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        bad = ((t >= self.low) & (t <= self.high)).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(bad, torch.nan, self.inner(x, t, condition))


@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_nan_of_one_member_spares_the_others(
    mixture: Mixture, train: Pairs, valid: Pairs, gamma: float
) -> None:
    config = replace(CONFIG, gamma=gamma)
    knots = torch.stack([start_of("karras"), start_of("log_snr")])
    place = float(knots[0, 2])
    broken = Broken(mixture, 0.999 * place, 1.001 * place)
    both = last(learn(Problem(broken, SOLVER, knots, train, valid, L2, seeds=[1, 2]), config))
    alone = last(learn(Problem(mixture, SOLVER, knots[1], train, valid, L2, seeds=[2]), config))
    assert both.best_valid[0] == math.inf
    torch.testing.assert_close(both.best.knots[0], knots[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(both.best_valid[1], alone.best_valid[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(both.best.evals[1], alone.best.evals[0], rtol=1e-12, atol=1e-12)


def test_nan_met_on_the_way_keeps_what_was_best(
    mixture: Mixture, train: Pairs, valid: Pairs
) -> None:
    """A member that walks into NaN keeps its last finite grid; nothing raises."""
    first = SOLVER.coupled(mixture.noise, start_of("karras")).evals[2].item()
    for low, high in (
        (1.01 * first, 3 * first),
        (first / 3, first / 1.01),
    ):  # whichever way it walks
        steps = list(
            learn(
                Problem(Broken(mixture, low, high), SOLVER, start_of("karras"), train, valid, L2),
                replace(CONFIG, lr=1.0),
            )
        )
        assert torch.isfinite(steps[-1].best_valid).all()
        assert torch.isfinite(steps[-1].best.knots).all()
        assert torch.isfinite(steps[-1].tableau.outputs).all()


def test_a_stalled_member_stops_alone(mixture: Mixture, train: Pairs, valid: Pairs) -> None:
    """A member that does not improve for `patience` epochs costs nothing more, and the others learn
    on.
    """
    knots = torch.stack([start_of("karras"), start_of("log_snr")])
    broken = Broken(mixture, 0.999 * float(knots[0, 2]), 1.001 * float(knots[0, 2]))
    config = replace(CONFIG, gamma=0.0, patience=2, epochs=5)
    both = last(learn(Problem(broken, SOLVER, knots, train, valid, L2, seeds=[1, 2]), config))
    alone = last(learn(Problem(mixture, SOLVER, knots[1], train, valid, L2, seeds=[2]), config))
    assert alone.epoch == both.epoch > 2
    torch.testing.assert_close(both.best_valid[1], alone.best_valid[0], rtol=1e-12, atol=0)
    assert both.network_evals - alone.network_evals == NFE * (2 * len(train) + 3 * len(valid))
