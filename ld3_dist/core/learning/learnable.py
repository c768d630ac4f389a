"""The learnable grid: any real parameter vector is a valid schedule.

In a coordinate u that increases along the sampling path (u = lam, or u = -t), from u_0 at t_max to
u_N at t_min:

    u_i   = u_0 + (u_N - u_0) sum_{j<i} gap_j,      gap = floor + (1 - N floor) softmax(logits)
    tau_j : u(tau_j) = nominal_j + window tanh(offset_j) * (distance to the neighbouring knot on
        that side)

so knots decrease strictly and network times stay between their neighbours whatever the parameters
are. The start is any hand-made grid, exactly: logits = log(gap - floor), offsets = 0. Learned
coefficients are corrections to the tableau over all of the history (S4S, arXiv 2502.17423; GS,
arXiv 2510.17699), zero at the start:

    y_{i+1} = (1 + c_i) state_{i+1} x_T + sum_{j<=i} outputs_{i+1,j} m_j + a_i m_i + sum_{j<i} b_ij
    (m_{j+1} - m_j)

Late outputs resemble each other, so the loss is stiff in the sum of their weights and soft in how
it is shared out. Differences part the two: a_i and c_i, the stiff ones, are taken in units of
STIFF."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..grid import Grid, lam_range
from ..noise import NoiseSchedule
from ..solver import Solver, Tableau

COORDINATES = ("lambda", "time")
GAP_FLOOR = {"lambda": 2e-4, "time": 1e-8}
"""Smallest gap of two knots as a fraction of the coordinate's range, or half the start's smallest
if that is less.
"""
RESOLUTION = 1e-9
"""Smallest gap a start may have: below it knots run together in float64 once they are added up and
inverted.
"""
STIFF = 0.1
"""Unit of the corrections that change how much of all outputs, or of x_T, there is."""


class LearnableGrid(nn.Module):
    """K schedules of one solver as parameters logits [K, N], offsets [K, E] and corrections [K, E,
    1 + E].

    Args:
        knots: start grids, as times [K, N+1], from t_max to t_min.
        nfe: network evaluations E of each schedule.
        coordinate: "lambda" or "time".
        window: how far a network time may move towards the neighbouring knot, 0 (coupled) to below
            1.
        coefficients: whether corrections to the coefficients are learned as well.
        device: where the parameters and the grid live; must have float64.

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
    ) -> None:
        super().__init__()
        if coordinate not in COORDINATES:
            raise unknown("coordinate", coordinate, COORDINATES)
        if not 0 <= window < 1:
            raise InputError(f"offset_window = {window}: must lie in [0, 1)")
        start = Grid(knots.double().cpu(), solver.nominal(noise, knots.double().cpu(), nfe)).within(
            noise
        )
        self.noise, self.solver, self.nfe, self.coordinate, self.window = (
            noise,
            solver,
            nfe,
            coordinate,
            window,
        )
        lam = noise.lam(start.knots)
        # a schedule that ends in pure noise or pure data has lam softened there: its exact ends are
        # put back in `grid`
        self.softened = coordinate == "lambda" and bool((lam[0, [0, -1]].abs() > 15).any())
        ends = lam_range(noise) if coordinate == "lambda" else (-noise.t_max, -noise.t_min)
        low, high = (torch.full_like(lam[:, :1], end) for end in ends)
        if self.softened:  # no further than the schedule, but beyond every knot of the start
            low = torch.cat([low, lam[:, 1:-1] - 1], 1).amin(1, keepdim=True).maximum(lam[:, :1])
            high = torch.cat([high, lam[:, 1:-1] + 1], 1).amax(1, keepdim=True).minimum(lam[:, -1:])
        u = lam.clamp(low, high) if coordinate == "lambda" else -start.knots
        gaps = u.diff(dim=1) / (high - low)
        if bool((gaps < RESOLUTION).any()):
            k, i = (gaps < RESOLUTION).nonzero()[0].tolist()
            knot = float(start.knots[k, i + 1])
            raise InputError(
                f"knots[{k}, {i + 1}] = {knot!r} cannot be told from its neighbour in {coordinate}"
            )
        gaps = gaps / gaps.sum(-1, keepdim=True)
        floor = (gaps.amin(-1, keepdim=True) / 2).clamp_max(GAP_FLOOR[coordinate])
        self.logits = nn.Parameter((gaps - floor).log().to(device))
        self.offsets = nn.Parameter(
            torch.zeros_like(start.evals, device=device), requires_grad=window > 0
        )
        corrections = torch.zeros(len(knots), nfe, 1 + nfe, dtype=torch.float64, device=device)
        self.corrections = nn.Parameter(corrections, requires_grad=coefficients)
        self.before, self.after = (
            torch.tensor(knot, device=device) for knot in solver.brackets(nfe)
        )
        self.limits = tuple(
            limit.to(device) for limit in (floor, low, high)
        )  # stay float64 where parameters do not

    def _time(self, u: Tensor) -> Tensor:
        return self.noise.inverse(u) if self.coordinate == "lambda" else -u

    def grid(self) -> Grid:
        """The K grids the parameters stand for, differentiable; float64 whatever the parameters'
        dtype.
        """
        floor, low, high = self.limits
        gaps = floor + (1 - self.logits.shape[1] * floor) * torch.softmax(self.logits.double(), -1)
        inner = low + (high - low) * gaps.cumsum(-1)[:, :-1]
        first, last = (
            torch.full_like(low, self.noise.t_max),
            torch.full_like(high, self.noise.t_min),
        )
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

    def times(self, u: Tensor, at: Tensor) -> Tensor:
        """Network times in the coordinate, from knots u [K, N+1] and nominal times at [K, E]."""
        ahead, behind = u[:, self.after] - at, at - u[:, self.before]
        s = self.window * torch.tanh(self.offsets.double())
        # at an end of the range there is room on one side only: the move is reflected there, never
        # dead
        forward = s * torch.where(ahead > 1e-12, ahead, -behind)
        backward = s * torch.where(behind > 1e-12, behind, -ahead)
        return at + torch.where(s >= 0, forward, backward)

    def tableau(self) -> tuple[Grid, Tableau]:
        """The grids and their coefficients, corrections included."""
        grid = self.grid()
        tableau = self.solver.tableau(self.noise, grid)
        if self.corrections.requires_grad:
            tableau = corrected(tableau, self.corrections.double())
        return grid, tableau


def corrected(tableau: Tableau, corrections: Tensor) -> Tableau:
    """A tableau with corrections [K, E, 1 + E]: c in the first column, then b below a on the
    diagonal.
    """
    c, rest = STIFF * corrections[..., :1], corrections[..., 1:]
    a, b = STIFF * torch.diagonal(rest, dim1=-2, dim2=-1), torch.tril(rest, -1)
    added = (
        torch.diag_embed(a) + nn.functional.pad(b, (1, 0))[..., :-1] - b
    )  # b_ij at j + 1, taken away at j
    state = torch.cat([tableau.state[:, :1], tableau.state[:, 1:] * (1 + c[..., 0])], 1)
    outputs = torch.cat([tableau.outputs[:, :1], tableau.outputs[:, 1:] + added], 1)
    return Tableau(tableau.evals, state, outputs, tableau.noise)
