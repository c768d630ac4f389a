"""The learnable grid: any real parameter vector is a valid schedule.

In a coordinate u that increases along the sampling path (u = lam, or u = -t), from u_0 at t_max to u_N at t_min:

    u_i   = u_0 + (u_N - u_0) sum_{j<i} gap_j,      gap = floor + (1 - N floor) softmax(logits)
    tau_j : u(tau_j) = nominal_j + window tanh(offset_j) * (distance to the neighbouring knot on that side)

so knots decrease strictly and network times stay between their neighbours whatever the parameters are. The start is any
hand-made grid, exactly: logits = log(gap - floor), offsets = 0. Learned coefficients are additive corrections to the
tableau over the full history (S4S, arXiv 2502.17423; GS, arXiv 2510.17699), zero at the start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import InputError, unknown
from .grid import Grid, lam_range
from .noise import NoiseSchedule
from .solver import Solver, Tableau

COORDINATES = ("lambda", "time")
GAP_FLOOR = {"lambda": 2e-4, "time": 1e-8}
"""Smallest gap between two knots, as a fraction of the coordinate's range."""


class LearnableGrid(nn.Module):
    """K schedules of one solver as parameters logits [K, N], offsets [K, E] and corrections [K, E, E].

    Args:
        knots: start grids, as times [K, N+1], from t_max to t_min.
        nfe: network evaluations E of each schedule.
        coordinate: "lambda" or "time".
        window: how far a network time may move towards the neighbouring knot, 0 (coupled) to below 1.
        coefficients: whether corrections to the coefficients are learned as well.
        device: where the parameters and the grid live; must have float64.

    Raises:
        InputError: unknown coordinate, window outside [0, 1), knots that are no grid of this schedule.
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
        start = Grid(knots.double().cpu(), solver.nominal(noise, knots.double().cpu(), nfe)).within(noise)
        self.noise, self.solver, self.nfe, self.coordinate, self.window = noise, solver, nfe, coordinate, window
        self.ends = lam_range(noise) if coordinate == "lambda" else (-noise.t_max, -noise.t_min)
        # a schedule that ends in pure noise or pure data has lam softened there: its exact ends are put back below
        self.softened = coordinate == "lambda" and max(map(abs, noise.lam(start.knots[0, [0, -1]]).tolist())) > 15
        u = self._coordinate(start.knots)
        gaps = (u[:, 1:] - u[:, :-1]) / (self.ends[1] - self.ends[0])
        if bool((gaps <= 0).any()):
            k, i = (gaps <= 0).nonzero()[0].tolist()
            raise InputError(f"knots[{k}, {i + 1}] = {float(knots[k, i + 1])!r} cannot be told from its neighbour in {coordinate}")
        gaps = gaps / gaps.sum(-1, keepdim=True)
        floor = (gaps.amin(-1, keepdim=True) / 2).clamp_max(GAP_FLOOR[coordinate])
        self.register_buffer("floor", floor.to(device))
        self.logits = nn.Parameter((gaps - floor).log().to(device))
        self.offsets = nn.Parameter(torch.zeros_like(start.evals, device=device), requires_grad=window > 0)
        corrections = torch.zeros(len(knots), nfe, nfe, dtype=torch.float64, device=device)
        self.corrections = nn.Parameter(corrections, requires_grad=coefficients)
        low, high = solver.brackets(nfe)
        self.register_buffer("low", torch.tensor(low, device=device))
        self.register_buffer("high", torch.tensor(high, device=device))

    def _coordinate(self, t: Tensor) -> Tensor:
        return self.noise.lam(t).clamp(*self.ends) if self.coordinate == "lambda" else -t

    def _time(self, u: Tensor) -> Tensor:
        return self.noise.inverse(u) if self.coordinate == "lambda" else -u

    def grid(self) -> Grid:
        """The K grids the parameters stand for, differentiable; float64 whatever the parameters' dtype."""
        logits, floor = self.logits.double(), self.floor.double()
        K, N = logits.shape
        gaps = floor + (1 - N * floor) * torch.softmax(logits, -1)
        inner = self.ends[0] + (self.ends[1] - self.ends[0]) * gaps.cumsum(-1)[:, :-1]
        first, last = gaps.new_full((K, 1), self.noise.t_max), gaps.new_full((K, 1), self.noise.t_min)
        knots = torch.cat([first, self._time(inner), last], -1)
        nominal = self.solver.nominal(self.noise, knots, self.nfe)
        if not self.offsets.requires_grad:
            return Grid(knots, nominal)
        u = torch.cat([torch.full_like(first, self.ends[0]), inner, torch.full_like(last, self.ends[1])], -1)
        at = self._coordinate(nominal)
        ahead, behind = u[:, self.high] - at, at - u[:, self.low]
        s = self.window * torch.tanh(self.offsets.double())
        # at an end of the range there is room on one side only: the move is reflected there, never dead
        move = torch.where(s >= 0, s * torch.where(ahead > 1e-12, ahead, -behind), s * torch.where(behind > 1e-12, behind, -ahead))
        evals = self._time(at + move)
        if self.softened:
            evals = nominal + (evals - self._time(at))
        return Grid(knots, evals)

    def tableau(self) -> tuple[Grid, Tableau]:
        """The grids and their coefficients, corrections included."""
        grid = self.grid()
        tableau = self.solver.tableau(self.noise, grid)
        if self.corrections.requires_grad:
            corrections = torch.tril(self.corrections.double())  # row i corrects y_{i+1} over m_0 … m_i
            outputs = torch.cat([tableau.outputs[:, :1], tableau.outputs[:, 1:] + corrections], 1)
            tableau = Tableau(tableau.evals, tableau.state, outputs)
        return grid, tableau
