"""Theorem 1 of LD3 measured: the divergence between teacher's and student's output densities.

A solver with a table is a map Psi from unit noise x ~ N(0, I_d), with density phi, to samples. The
teacher Psi* makes the density q and the student Psi_xi the density p. With J the Jacobian and

    C(Psi)(x) = log |det J_Psi(x)|,        log q(Psi*(x)) = log phi(x) - C(Psi*)(x),

let x' be the noise that the student needs for the teacher's sample: Psi_xi(x') = Psi*(x). If Psi_xi
is invertible there is exactly one x', and log p(Psi*(x)) = log phi(x') - C(Psi_xi)(x'). With
log phi(x) = -|x|^2 / 2 + const, the divergence is an average over x of two parts:

    KL(q || p) = E[log phi(x) - log phi(x')] + E[C(Psi_xi)(x') - C(Psi*)(x)]
               = E[(|x'|^2 - |x|^2) / 2]     + E[C(Psi_xi)(x') - C(Psi*)(x)]              (identity)

If the soft loss is zero at radius r, that is |x' - x| <= r for every x, then |x'| <= |x| + r, and

    (|x'|^2 - |x|^2) / 2 <= r |x| + r^2 / 2,        E|x| <= sqrt(E|x|^2) = sqrt(d) <= sqrt(d + 1)

    KL(q || p) <= r^2 / 2 + r sqrt(d + 1) + E|C(Psi*)(x) - C(Psi_xi)(x')|                    (bound)

which is Theorem 1 of arXiv 2405.15506, with both Jacobians at matched points. The step to the bound
loses three things: the sign of the inner product of x and x' - x, the sign of the difference of
the Jacobians, and all moves that are shorter than the longest. x has no bounded support, so a
longest move need not exist. Moves of different lengths rho(x) = |x' - x| have a bound without one,
by the inequality of Cauchy and Schwarz:

    KL(q || p) <= E[rho^2] / 2 + sqrt(d E[rho^2]) + E|C(Psi*)(x) - C(Psi_xi)(x')|     (mean square)

The theorem needs an invertible student. A smooth map of R^d to itself is invertible if its Jacobian
is singular nowhere and |Psi(x)| grows without limit as |x| does (Hadamard 1906; Caccioppoli 1932).
The determinant then has one sign. `jacobians` therefore returns the determinant's sign and the
smallest singular value at every state y_i of the path, and `divergence` gives no number, but the
reason, where the sign changes or a sample of the teacher has no match. In one dimension, where a
fold costs nothing to follow, `density_on_line` adds up all preimages and stays valid.

All of it is float64. Jacobians are exact (torch.func), so the denoiser must be made of operations
that torch.func maps and differentiates; the mixtures of `models.analytic` are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import InputError
from .sample import initial_state, states
from .solver import Tableau

MATCHED = 1e-9
"""A match is found when |Psi_xi(x') - y| is below this, relative to 1 + |y|."""
ROUNDS = 15
"""The most Newton steps to a match."""
FEW = 8
"""The same for a student that is known to fold: its matches are no divergence any more."""
HALVINGS = 12
"""The most halvings of one Newton step."""


@dataclass(frozen=True)
class Jacobians:
    """A map at M points, with the Jacobians of its whole path.

    samples: y_E = Psi(x), float64 [M, d].
    last: the Jacobian of y_E in unit noise [M, d, d].
    signs: the sign of det dy_i/dx at the states i = 0 … E, [M, E+1].
    smallest: the smallest singular value of dy_i/dx, [M, E+1].
    """

    samples: Tensor
    last: Tensor
    signs: Tensor
    smallest: Tensor

    @property
    def log_det(self) -> Tensor:
        """C = log |det J| of the samples, [M]."""
        return torch.linalg.slogdet(self.last).logabsdet


@dataclass(frozen=True)
class Points:
    """Points of the noise with the weights of an average: E f = sum_m weights_m f(noise_m).

    noise: float64 [M, d].
    weights: [M], their sum is 1.
    drawn: true for random draws, whose averages have a standard error.
    """

    noise: Tensor
    weights: Tensor
    drawn: bool = True

    def mean(self, values: Tensor) -> float:
        """The average of values [M]."""
        return float(self.weights @ values)

    def error(self, values: Tensor) -> float:
        """The standard error of the average of values [M]; 0 for quadrature."""
        if not self.drawn:
            return 0.0
        return float(values.std() / math.sqrt(len(values)))


@dataclass(frozen=True)
class Divergence:
    """KL(q || p) and the terms of Theorem 1, see the top of this file.

    kl, kl_error: the divergence and its standard error; None where the student is not invertible.
    reason: the words for it, empty where it is invertible.
    radial: E[(|x'|^2 - |x|^2) / 2], the first part of the identity.
    volume: E[C(Psi_xi)(x') - C(Psi*)(x)], the second part.
    longest, typical: the largest and the root mean square of |x' - x|, in unit noise.
    within: the fraction of points with |x' - x| <= r, for the r that was asked for.
    square, linear, jacobian: the three terms r^2 / 2, r sqrt(d + 1) and E|C - C'|, at r = longest.
    bound: their sum.
    mean_square_bound: the bound by the mean square of the moves.
    unpaired: E|C(Psi*)(x) - C(Psi_xi)(x)|, both at the same noise.
    flipped: the fraction of points where the student's determinant has the rarer sign.
    unmatched: the fraction of the teacher's samples for which no x' was found.
    smallest: the smallest singular value of the student's Jacobian at any point.
    path_flips: the number of states y_1 … y_E of the student's path where the sign changes from
        point to point.
    """

    kl: float | None
    kl_error: float | None
    reason: str
    radial: float | None
    volume: float | None
    longest: float
    typical: float
    within: float
    square: float
    linear: float
    jacobian: float
    bound: float | None
    mean_square_bound: float | None
    unpaired: float
    flipped: float
    unmatched: float
    smallest: float
    path_flips: int


def draws(count: int, dim: int, seed: int = 0) -> Points:
    """Independent draws of unit noise, all of the same weight."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return Points(noise, torch.full((count,), 1 / count, dtype=torch.float64))


def line(count: int = 2001, reach: float = 6.0) -> Points:
    """The trapezoidal rule for averages over one-dimensional unit noise, on [-reach, reach].

    For smooth functions its error falls faster than any power of the spacing (Trefethen & Weideman
    2014, doi 10.1137/130932132); the mass beyond 6 is 2e-9. Maps of a few evaluations bend within
    0.01 of each other, which takes 2,000 points: a divergence of 0.3 was wrong by 0.01 with 401.
    """
    x = torch.linspace(-reach, reach, count, dtype=torch.float64)
    weights = torch.exp(-0.5 * x**2)
    return Points(x[:, None], weights / weights.sum(), drawn=False)


def jacobians(denoiser: Denoiser, tableau: Tableau, noise: Tensor) -> Jacobians:
    """The map of a table at unit noise [M, d], with the exact Jacobians of its whole path.

    Raises InputError for a table of several members.
    """
    J, samples = _derived(denoiser, tableau, noise, whole=True)
    signs = torch.linalg.slogdet(J).sign
    smallest = torch.linalg.svdvals(J)[..., -1]
    return Jacobians(samples, J[:, -1], signs, smallest)


def _derived(
    denoiser: Denoiser, tableau: Tableau, noise: Tensor, whole: bool
) -> tuple[Tensor, Tensor]:
    """Jacobians [M, E+1, d, d] of the path, or [M, 1, d, d] of its end, and the samples [M, d]."""
    if tableau.evals.ndim != 1:
        raise InputError(
            f"theory: the table has {len(tableau.evals)} members; take one of them, "
            "without its leading dimension"
        )
    shape, dim = tuple(denoiser.shape), noise.shape[1]

    def path(x: Tensor) -> tuple[Tensor, Tensor]:
        x_T = initial_state(denoiser, x.reshape(1, *shape))
        y = torch.stack([state.reshape(dim) for state in states(denoiser, tableau, x_T)[0]])
        return (y if whole else y[-1:]), y[-1]

    # forward mode: d tangents give all E + 1 Jacobians, reverse mode would need (E + 1) d sweeps
    each = torch.func.vmap(torch.func.jacfwd(path, has_aux=True))
    J, samples = each(noise.double())
    return J.detach(), samples.detach()


def apply(denoiser: Denoiser, tableau: Tableau, noise: Tensor) -> Tensor:
    """The samples [M, d] of a table from unit noise [M, d], without gradients."""
    shape = tuple(denoiser.shape)
    with torch.no_grad():
        x_T = initial_state(denoiser, noise.double().reshape(-1, *shape))
        return states(denoiser, tableau, x_T)[0][-1].reshape(noise.shape)


def match(
    denoiser: Denoiser, tableau: Tableau, wanted: Tensor, start: Tensor, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """The noise x' [M, d] from which a table makes the samples `wanted` [M, d].

    At most `rounds` of Newton's method from `start` [M, d], each step halved until the gap falls.

    Returns x' and booleans [M] that are True where the gap is below MATCHED.
    """
    x, limit = start.double().clone(), MATCHED * (1 + wanted.norm(dim=1))
    gap = torch.full_like(limit, math.inf)
    rows = torch.arange(len(x))
    for _ in range(rounds):
        J, made = _derived(denoiser, tableau, x[rows], whole=False)
        away = made - wanted[rows]
        gap[rows] = away.norm(dim=1)
        left = gap[rows] > limit[rows]
        rows, away, J = rows[left], away[left], J[left, 0]
        if not len(rows):
            break
        # least squares, so that a singular Jacobian still gives a direction
        step = -torch.nan_to_num(torch.linalg.lstsq(J, away[..., None]).solution[..., 0])
        moved = _shorter(denoiser, tableau, wanted[rows], x[rows], step, gap[rows])
        before, x[rows] = x[rows], moved
        rows = rows[(moved != before).any(1)]
        if not len(rows):
            break
    return x, gap <= limit


def _shorter(
    denoiser: Denoiser, tableau: Tableau, wanted: Tensor, x: Tensor, step: Tensor, gap: Tensor
) -> Tensor:
    """x + step [M, d], each step halved until the gap is smaller; x itself where none is."""
    moved, rows = x.clone(), torch.arange(len(x))
    for halving in range(HALVINGS):
        trial = x[rows] + step[rows] / 2**halving
        better = (apply(denoiser, tableau, trial) - wanted[rows]).norm(dim=1) < gap[rows]
        moved[rows[better]] = trial[better]
        rows = rows[~better]
        if not len(rows):
            break
    return moved


def divergence(
    denoiser: Denoiser, teacher: Tableau, student: Tableau, points: Points, radius: float = 0.0
) -> Divergence:
    """KL(q || p) of a teacher's and a student's outputs, and the terms of Theorem 1.

    Args:
        teacher, student: tables of one schedule each.
        points: where averages are taken; `line` for d = 1, else `draws`.
        radius: the r whose share of samples `within` is measured, in unit noise.
    """
    x = points.noise
    star = jacobians(denoiser, teacher, x)
    same = jacobians(denoiser, student, x)
    turned = bool(same.signs[:, -1].amin() < same.signs[:, -1].amax())
    rounds = FEW if turned else ROUNDS  # no number is lost: there is none for a map that folds
    moved, found = match(denoiser, student, star.samples, x, rounds)
    there = jacobians(denoiser, student, moved)
    mass = lambda mask: float(points.weights[mask].sum())
    up = same.signs[:, -1] > 0
    flipped, unmatched = min(mass(up), mass(~up)), mass(~found)
    rho = (moved - x).norm(dim=1)[found]
    radial = (moved.square().sum(1) - x.square().sum(1)) / 2
    volume = there.log_det - star.log_det
    typical = math.sqrt(float(points.weights[found] @ rho.square()) / max(mass(found), 1e-300))
    longest = float(rho.max()) if len(rho) else math.inf
    jacobian = float(points.weights[found] @ volume[found].abs()) / max(mass(found), 1e-300)
    dim = x.shape[1]
    square, linear = longest**2 / 2, longest * math.sqrt(dim + 1)
    signs = torch.cat([same.signs, there.signs[found]])[:, 1:]  # [.., E], of y_1 … y_E
    folds = signs.amin(0) < signs.amax(0)
    reason = _reason(star.signs[:, -1], bool(folds[-1]), flipped, unmatched)
    known = not reason
    return Divergence(
        kl=points.mean(radial + volume) if known else None,
        kl_error=points.error(radial + volume) if known else None,
        reason=reason,
        radial=points.mean(radial) if known else None,
        volume=points.mean(volume) if known else None,
        longest=longest,
        typical=typical,
        within=float(points.weights[found] @ (rho <= radius).double()),
        square=square,
        linear=linear,
        jacobian=jacobian,
        bound=square + linear + jacobian if known else None,
        mean_square_bound=typical**2 / 2 + typical * math.sqrt(dim) + jacobian if known else None,
        unpaired=points.mean((same.log_det - star.log_det).abs()),
        flipped=flipped,
        unmatched=unmatched,
        smallest=float(same.smallest[:, -1].min()),
        path_flips=int(folds.sum()),
    )


def _reason(teacher: Tensor, folds: bool, flipped: float, unmatched: float) -> str:
    """The words for a divergence that has no number, empty where it has one."""
    if bool(teacher.amin() < teacher.amax()):
        return "the teacher folds: the sign of its determinant changes"
    if folds:
        return (
            f"the student folds: the sign of its determinant changes, at {flipped:.2g} of the noise"
        )
    if unmatched:
        return f"no noise was found for {unmatched:.2g} of the teacher's samples"
    return ""


def density_on_line(
    denoiser: Denoiser, tableau: Tableau, at: Tensor, count: int = 40_001, reach: float = 30.0
) -> Tensor:
    """The density of a one-dimensional map's samples at points `at` [M], all preimages summed.

    The map is evaluated at `count` points of the noise and is linear between them: every cell
    spreads its mass evenly over its image. No Jacobian and no invertibility is needed; the
    relative error is of the order of the squared spacing of the points. `reach` is far, because a
    student that contracts makes the teacher's outer samples from noise farther out than theirs.

    Raises InputError for a denoiser of more than one dimension.
    """
    if torch.Size(denoiser.shape).numel() != 1:
        raise InputError(
            f"theory: a density on the line needs samples of one number, this model's are "
            f"{tuple(denoiser.shape)}; use `divergence`"
        )
    x = torch.linspace(-reach, reach, count, dtype=torch.float64)
    y = torch.cat([apply(denoiser, tableau, part[:, None])[:, 0] for part in x.split(20_000)])
    # erfc keeps both tails to 1e-300; torch's own ndtr is made of erf, and ends at -8
    below, above = (torch.special.erfc(sign * x / math.sqrt(2)) / 2 for sign in (-1, 1))
    mass = torch.where(x[1:] > 0, -above.diff(), below.diff())
    rising = y.diff() > 0
    turns = (rising[1:] != rising[:-1]).nonzero()[:, 0] + 1  # points where the map turns back
    bounds = [0, *turns.tolist(), len(y) - 1]
    found = torch.zeros_like(at, dtype=torch.float64)
    for first, last in pairwise(bounds):  # a monotone branch each
        branch, held = y[first : last + 1], mass[first:last]
        if branch[0] > branch[-1]:
            branch, held = branch.flip(0), held.flip(0)
        cell = torch.searchsorted(branch, at.contiguous(), right=True) - 1
        inside = (cell >= 0) & (cell < len(held))
        cell = cell.clamp(0, len(held) - 1)
        width = (branch[cell + 1] - branch[cell]).clamp_min(1e-300)
        found += torch.where(inside, held[cell] / width, 0.0)
    return found


def divergence_on_line(denoiser: Denoiser, teacher: Tableau, student: Tableau) -> float:
    """KL(q || p) in one dimension from the two densities on a grid; valid for maps that fold.

    It is infinite where the teacher has samples that the student never makes.
    """
    points = line()
    at = apply(denoiser, teacher, points.noise)[:, 0]
    q = density_on_line(denoiser, teacher, at, 20_001, 8.0)
    p = density_on_line(denoiser, student, at)
    counted = points.weights > 0
    return float((points.weights * (q.log() - p.log()))[counted].sum())
