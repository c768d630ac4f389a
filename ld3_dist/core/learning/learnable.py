"""The learnable grid: any real parameter vector is a valid schedule.

The coordinate u is lam or -t; it increases along the sampling path, from u_0 at t_max to u_N at
t_min. With one logit per gap and one offset per evaluation,

    u_i      = u_0 + (u_N - u_0) sum_{j<i} gap_j,     gap = floor + (1 - N floor) softmax(logits)
    u(tau_j) = nominal_j + window tanh(offset_j) * (distance to the next knot on that side)

The start time can be learned, too (start_time). The gaps then have one more logit, for a first gap
from t_max to t_0 that is not integrated. The path starts from the same noise at the level of t_0,
where v in (0, 1) is learned as well:

    y_0 = state_0 x_T,    state_0 = sqrt(sigma(t_0)^2 + v alpha(t_0)^2) / prior_scale

If the data are Gaussian with variance v, the exact path passes there. Near t_max the network's
output is the mean of the data, whatever x is, so that an evaluation there is nearly wasted.

For all parameters, knots decrease strictly and network times tau_j stay between their neighbours.
Any hand-made grid can be the start, exactly: logits = log(gap - floor) and offsets = 0.

The solver's coefficients can be learned too, as corrections a, b and c to the tableau over the
whole history (S4S, arXiv 2502.17423; GS, arXiv 2510.17699). They are zero at the start:

    y_{i+1} = (1 + c_i) state_{i+1} x_T + sum_{j<=i} outputs_{i+1,j} m_j
              + a_i m_i + sum_{j<i} b_ij (m_{j+1} - m_j)

Late outputs resemble each other. The loss therefore changes fast with the sum of their weights, and
slowly with how the sum is divided among them. The differences m_{j+1} - m_j separate the two: a_i
and c_i change the sums and have the unit STIFF, b_ij only divides them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..grid import Grid, lam_range
from ..noise import NoiseSchedule
from ..solver import Solver, Tableau

COORDINATES = ("lambda", "time")
GAP_FLOOR = {"lambda": 2e-4, "time": 1e-8}
"""The smallest gap between two knots, as a fraction of the coordinate's range.

If half of the start's smallest gap is less than this, that is the floor instead.
"""
RESOLUTION = 1e-9
"""The smallest gap that a start may have; float64 cannot keep closer knots apart."""
SKIPPED = 0.05
"""The fraction of the coordinate's range before t_0, where the start time is learned, at first."""
LATER = "later:"
"""Begins the name of a start from which the start time is learned as well: `later:log_snr`."""
STIFF = 0.1
"""The unit of the corrections a and c, which change how much the outputs or x_T count in all."""


class LearnableGrid(nn.Module):
    """K schedules of one solver as parameters.

    These are logits [K, N], offsets [K, E] and corrections [K, E, 1 + E]. With a learned start time
    there are N + 1 logits, of which the first belongs to the gap before t_0; it is minus infinity
    for schedules that begin at t_max beside others.

    Args:
        knots: start grids, as times [K, N+1], from t_max to t_min.
        nfe: network evaluations E of each schedule.
        coordinate: "lambda" or "time".
        window: how far a network time may move towards the neighbouring knot, as a fraction in
            [0, 1); with 0 network times are coupled to the knots.
        coefficients: True if corrections to the coefficients are learned as well.
        start_time: True if the time t_0 of the first knot is learned as well, for all schedules or
            for each [K]. It begins SKIPPED of the coordinate's range after t_max.
        device: device of the parameters and the grid; it must have float64.

    Raises:
        InputError: unknown coordinate, window outside [0, 1), knots that are no grid of this
            schedule.
    """

    def __init__(
        self,
        noise: NoiseSchedule,
        solver: Solver,
        knots: Tensor,
        nfe: int,
        coordinate: str = "lambda",
        window: float = 0.5,
        coefficients: bool = False,
        device: torch.device | str = "cpu",
        *,
        start_time: bool | Sequence[bool] = False,
    ) -> None:
        super().__init__()
        if coordinate not in COORDINATES:
            raise unknown("coordinate", coordinate, COORDINATES)
        if not 0 <= window < 1:
            raise InputError(f"offset_window = {window}: must lie in [0, 1)")
        knots = knots.double().cpu()
        start = Grid(knots, solver.nominal(noise, knots, nfe)).within(noise)
        self.noise, self.solver, self.nfe = noise, solver, nfe
        self.coordinate, self.window = coordinate, window
        gaps, low, high, self.softened = fractions(noise, start.knots, coordinate)
        floor = (gaps.amin(-1, keepdim=True) / 2).clamp_max(GAP_FLOOR[coordinate])
        spare = 1 - gaps.shape[1] * floor
        later = torch.tensor(start_time).expand(len(knots))[:, None]
        self.start_time = bool(later.any())
        if self.start_time:
            gaps, floor = with_first_gap(gaps, floor, later)
            spare = 1 - floor.sum(1, keepdim=True)
        self.logits = nn.Parameter((gaps - floor).log().to(device))
        self.variance = nn.Parameter(  # logit of v
            torch.zeros_like(low, device=device), requires_grad=self.start_time
        )
        self.offsets = nn.Parameter(
            torch.zeros_like(start.evals, device=device), requires_grad=window > 0
        )
        corrections = torch.zeros(len(knots), nfe, 1 + nfe, dtype=torch.float64, device=device)
        self.corrections = nn.Parameter(corrections, requires_grad=coefficients)
        self.before, self.after = (
            torch.tensor(knot, device=device) for knot in solver.brackets(nfe)
        )
        # no buffers, so that they stay float64 if the parameters do not
        self.limits = tuple(limit.to(device) for limit in (floor, spare, low, high))
        self.later = later.to(device)

    def _time(self, u: Tensor) -> Tensor:
        return self.noise.inverse(u) if self.coordinate == "lambda" else -u

    def grid(self) -> Grid:
        """The K grids of the parameters, differentiable, float64 for parameters of any dtype."""
        floor, spare, low, high = self.limits
        gaps = floor + spare * torch.softmax(self.logits.double(), -1)
        inner = low + (high - low) * gaps.cumsum(-1)[:, :-1]
        first, last = (torch.full_like(low, end) for end in (self.noise.t_max, self.noise.t_min))
        if self.start_time:
            low, inner = self._where_later(inner[:, :1]), inner[:, 1:]
            first = torch.where(self.later, self._time(low), first)
        knots = torch.cat([first, self._time(inner), last], -1)
        nominal = self.solver.nominal(self.noise, knots, self.nfe)
        if not self.offsets.requires_grad:
            return Grid(knots, nominal)
        u = torch.cat([low, inner, high], -1)
        at = self.noise.lam(nominal).clamp(low, high) if self.coordinate == "lambda" else -nominal
        evals = self._time(self.times(u, at))
        if self.softened:
            evals = nominal + (evals - self._time(at))
        return Grid(knots, evals)

    def _where_later(self, values: Tensor) -> Tensor:
        """The values [K, 1] without a gradient where the start time is not learned.

        At t_max a derivative may be infinite.
        """
        return torch.where(self.later, values, values.detach())

    def times(self, u: Tensor, at: Tensor) -> Tensor:
        """Network times [K, E] in the coordinate, from knots u [K, N+1] and nominal times `at`."""
        s = self.window * torch.tanh(self.offsets.double())
        return times_between(at, s, u[:, self.before], u[:, self.after])

    def tableau(self) -> tuple[Grid, Tableau]:
        """The grids and their coefficients, corrections included."""
        grid = self.grid()
        tableau = self.solver.tableau(self.noise, grid)
        if self.start_time:
            tableau = begun(tableau, self.noise, grid.knots[:, :1], self.variance, self.later)
        if self.corrections.requires_grad:
            tableau = corrected(tableau, self.corrections.double())
        return grid, tableau


def fractions(
    noise: NoiseSchedule, knots: Tensor, coordinate: str
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Gaps [K, N] of knots [K, N+1] as fractions of the coordinate's range, whose sum is 1.

    Returns:
        The gaps, the ends [K, 1] of the range, and whether the ends are softened: at an end of pure
        noise or pure data, finite numbers stand for an infinite lam; `LearnableGrid.grid` puts the
        exact ends back.

    Raises InputError for knots that cannot be told apart in the coordinate.
    """
    lam = noise.lam(knots)
    softened = coordinate == "lambda" and bool((lam[0, [0, -1]].abs() > 15).any())
    ends = lam_range(noise) if coordinate == "lambda" else (-noise.t_max, -noise.t_min)
    low, high = (torch.full_like(lam[:, :1], end) for end in ends)
    if softened:  # within the schedule, but beyond every inner knot
        low = torch.cat([low, lam[:, 1:-1] - 1], 1).amin(1, keepdim=True).maximum(lam[:, :1])
        high = torch.cat([high, lam[:, 1:-1] + 1], 1).amax(1, keepdim=True).minimum(lam[:, -1:])
    u = lam.clamp(low, high) if coordinate == "lambda" else -knots
    gaps = u.diff(dim=1) / (high - low)
    if bool((gaps < RESOLUTION).any()):
        k, i = (gaps < RESOLUTION).nonzero()[0].tolist()
        raise InputError(
            f"knots[{k}, {i + 1}] = {float(knots[k, i + 1])!r} cannot be told from its neighbour "
            f"in {coordinate}"
        )
    return gaps / gaps.sum(-1, keepdim=True), low, high, softened


def with_first_gap(gaps: Tensor, floor: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
    """Gaps [K, N] and their floor [K, 1] with a gap from t_max to t_0 before them, [K, N+1] each.

    Where `later` [K, 1] is false, this gap and its floor are 0.
    """
    skipped = SKIPPED * later.double()
    gaps = torch.cat([skipped, (1 - skipped) * gaps], 1)
    floor = (1 - skipped) * floor
    return gaps, torch.cat([later * floor, floor.expand(-1, gaps.shape[1] - 1)], 1)


def begun(
    tableau: Tableau, noise: NoiseSchedule, t: Tensor, variance: Tensor, later: Tensor
) -> Tableau:
    """A tableau of paths from the same noise at the level of t_0, see the top of this file.

    Args:
        t: t_0 [K, 1].
        variance: the logit of v [K, 1].
        later: [K, 1], false for schedules that stay as they are.
    """
    t = torch.where(later, t, t.detach())  # at t_max a derivative may be infinite
    v = torch.sigmoid(variance.double())
    level = (noise.sigma(t).square() + v * noise.alpha(t).square()).sqrt()
    scale = torch.where(later, level / noise.prior_scale, torch.ones_like(level))
    return replace(tableau, state=scale * tableau.state)


def times_between(at: Tensor, s: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Times `at` moved by the fractions s towards the knots after (s > 0) or before them (s < 0).

    At an end of the range there is room on one side only: a move to the other side is reflected, so
    that it never lacks a gradient.
    """
    ahead, behind = after - at, at - before
    forward = s * torch.where(ahead > 1e-12, ahead, -behind)
    backward = s * torch.where(behind > 1e-12, behind, -ahead)
    return at + torch.where(s >= 0, forward, backward)


def corrected(tableau: Tableau, corrections: Tensor) -> Tableau:
    """A tableau with corrections [K, E, 1 + E] added, see the top of this file.

    The first column holds c. The other columns [E, E] hold a on the diagonal and b below it.
    """
    c, rest = STIFF * corrections[..., :1], corrections[..., 1:]
    a, b = STIFF * torch.diagonal(rest, dim1=-2, dim2=-1), torch.tril(rest, -1)
    # b_ij adds to the weight of m_{j+1} and takes as much from that of m_j
    added = torch.diag_embed(a) + nn.functional.pad(b, (1, 0))[..., :-1] - b
    state = torch.cat([tableau.state[:, :1], tableau.state[:, 1:] * (1 + c[..., 0])], 1)
    outputs = torch.cat([tableau.outputs[:, :1], tableau.outputs[:, 1:] + added], 1)
    return Tableau(tableau.evals, state, outputs, tableau.noise)
