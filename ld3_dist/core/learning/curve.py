"""The learnable curve: one vector of parameters holds the grid of every NFE.

A monotone curve u maps s in [0, 1] to the coordinate, lam or -t. Its values at s = i / N are the
knots of N steps (BezierFlow, arXiv 2512.13255). It is a clamped, uniform, cubic B-spline with
control points c_0 = 0 < … < c_P = 1 between the ends of the coordinate's range:

    u(s)   = low + (high - low) sum_p c_p B_p(s)
    c_p    = sum_{q<p} gap_q,    gap = floor + (1 - P floor) softmax(straight + logits + x tilt)
    x      = log2(NFE / middle)

As the control points increase, so does u, for all parameters. `straight` stands for the straight
line, so that zeros give the grid that is uniform in the coordinate; in lam that is log_snr. The
shape of a good grid drifts with the NFE, and `tilt` says by how much it does when the NFE doubles.
x stays within the NFEs that were learned on: beyond them the shape does not change.

A second spline moves the network times, as a fraction of the way to a neighbouring knot:

    tau_j  = nominal_j + window tanh(sum_p (offsets_p + x drift_p) B_p(s_j)) * distance
    s_j    = j / (E - 1)

so that the first and the last of the E evaluations, of which every solver makes something special,
stand at s = 0 and s = 1 for every NFE.

The start time can be learned, too: low is then replaced by

    low + (high - low) MOST_SKIPPED sigmoid(begin + x delay)

and the path starts there as that of a `LearnableGrid` does, with one v for every NFE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..grid import Grid, lam_range
from ..noise import NoiseSchedule
from ..solver import Solver, Tableau
from .learnable import COORDINATES, GAP_FLOOR, SKIPPED, begun, times_between

DEGREE = 3
"""Degree of the splines, if there are more control points than that."""
FIT_STEPS = 60
"""Steps of the fit to a start."""
EXACT = 1e-20
"""Mean squared error of the logarithms of gaps that needs no better fit."""
SMALL = 1e-6
"""Weight of the parameters themselves in the fit."""
MOST_SKIPPED = 0.9
"""The largest fraction of the coordinate's range that may lie before a learned start."""
START = ("begin", "delay", "variance")
"""The parameters of a learned start."""
PARAMETERS = ("logits", "tilt", "offsets", "drift", *START)


class Curve(nn.Module):
    """K curves of one solver as parameters [K, P], [K, P + 1] or [K, 1]; all zero at first.

    Except `begin`, where a start that is learned skips SKIPPED of the coordinate's range at first.

    Args:
        nfes: the NFEs that it is learned on; `middle` is their geometric mean.
        ends: the coordinate at s = 0 and s = 1, [K, 2].
        coordinate: "lambda" or "time".
        window: how far a network time may move towards the neighbouring knot, as a fraction in
            [0, 1); with 0 network times are coupled to the knots.
        points: the number P of gaps between control points.
        device: device of the parameters and the grids; it must have float64.
        later: True if the time t_0 of the first knot is learned as well, for all curves or for
            each [K].

    Raises:
        InputError: unknown coordinate, window outside [0, 1), an NFE that the solver cannot spend.
    """

    def __init__(
        self,
        noise: NoiseSchedule,
        solver: Solver,
        nfes: Sequence[int],
        ends: Tensor,
        coordinate: str = "lambda",
        window: float = 0.5,
        points: int = 8,
        device: torch.device | str = "cpu",
        *,
        later: bool | Sequence[bool] = False,
    ) -> None:
        super().__init__()
        if coordinate not in COORDINATES:
            raise unknown("coordinate", coordinate, COORDINATES)
        if not 0 <= window < 1:
            raise InputError(f"offset_window = {window}: must lie in [0, 1)")
        self.noise, self.solver, self.nfes = noise, solver, tuple(nfes)
        self.coordinate, self.window, self.points = coordinate, window, points
        self.middle = math.exp(sum(map(math.log, self.nfes)) / len(self.nfes))
        zeros = lambda size, learned: nn.Parameter(
            torch.zeros(len(ends), size, dtype=torch.float64, device=device), requires_grad=learned
        )
        drifts = len(self.nfes) > 1
        self.logits, self.tilt = zeros(points, True), zeros(points, drifts)
        self.offsets = zeros(points + 1, window > 0)
        self.drift = zeros(points + 1, window > 0 and drifts)
        starts = torch.tensor(later).expand(len(ends))[:, None]
        self.start_time = bool(starts.any())
        self.begin, self.variance = zeros(1, self.start_time), zeros(1, self.start_time)
        self.delay = zeros(1, self.start_time and drifts)
        with torch.no_grad():
            self.begin.fill_(math.log(SKIPPED / (MOST_SKIPPED - SKIPPED)))
        self.later = starts.to(device)
        lam = noise.lam(torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64))
        # as in LearnableGrid: finite ends stand for an infinite lam
        self.softened = coordinate == "lambda" and bool((lam.abs() > 15).any())
        # no buffer, so that they stay float64 if the parameters do not
        self.ends = ends.double().to(device)

    @classmethod
    def like(
        cls,
        noise: NoiseSchedule,
        solver: Solver,
        starts: Mapping[int, Tensor],
        coordinate: str = "lambda",
        window: float = 0.5,
        points: int = 8,
        device: torch.device | str = "cpu",
        *,
        later: bool | Sequence[bool] = False,
    ) -> Curve:
        """The curves nearest to start grids, which are given for every NFE, as times [K, N+1].

        Raises InputError for knots that are no grid of this schedule.
        """
        if coordinate not in COORDINATES:
            raise unknown("coordinate", coordinate, COORDINATES)
        grids = {}
        for nfe, knots in starts.items():
            knots = knots.double().cpu()
            grids[nfe] = Grid(knots, solver.nominal(noise, knots, nfe)).within(noise).knots
        place = lambda t: noise.lam(t) if coordinate == "lambda" else -t
        inner = {nfe: place(knots[:, 1:-1]) for nfe, knots in grids.items()}
        ends = _ends(noise, coordinate, list(inner.values()), len(next(iter(grids.values()))))
        made = cls(noise, solver, sorted(starts), ends, coordinate, window, points)
        made.fit(inner)
        moved = cls(noise, solver, made.nfes, ends, coordinate, window, points, device, later=later)
        return moved.set(made.values())

    def octaves(self, nfe: int) -> float:
        """x: how many times the NFE is twice the middle, within the NFEs that were learned on."""
        return math.log2(min(max(nfe, min(self.nfes)), max(self.nfes)) / self.middle)

    def gaps(self, x: float) -> Tensor:
        """The gaps between the control points [K, P], of sum 1."""
        floor = GAP_FLOOR[self.coordinate]
        straight = (spline_gaps(self.points) - floor).log().to(self.logits.device)
        logits = straight + self.logits.double() + x * self.tilt.double()
        return floor + (1 - self.points * floor) * torch.softmax(logits, -1)

    def shape(self, nfe: int) -> Tensor:
        """The curve at the knots of an NFE, [K, N+1] from exactly 0 to exactly 1."""
        N, gaps = self.solver.steps(nfe), self.gaps(self.octaves(nfe))
        rises = spline_rises(tuple(i / N for i in range(1, N)), self.points).to(gaps.device)
        ends = torch.zeros_like(gaps[:, :1]), torch.ones_like(gaps[:, :1])
        return torch.cat([ends[0], weighted(gaps, rises), ends[1]], -1)

    def _time(self, u: Tensor) -> Tensor:
        return self.noise.inverse(u) if self.coordinate == "lambda" else -u

    def grid(self, nfe: int) -> Grid:
        """The K grids of an NFE, differentiable, float64 for parameters of any dtype.

        Raises InputError for an NFE that the solver cannot spend.
        """
        low, high = self.ends[:, :1], self.ends[:, 1:]
        first, last = (torch.full_like(low, t) for t in (self.noise.t_max, self.noise.t_min))
        if self.start_time:
            low = torch.where(self.later, low + (high - low) * self.skipped(nfe), low)
            first = torch.where(self.later, self._time(low), first)
        u = low + (high - low) * self.shape(nfe)
        knots = torch.cat([first, self._time(u[:, 1:-1]), last], -1)
        nominal = self.solver.nominal(self.noise, knots, nfe)
        if not self.window:
            return Grid(knots, nominal)
        u = torch.cat([low, u[:, 1:-1], high], -1)
        at = self.noise.lam(nominal).clamp(low, high) if self.coordinate == "lambda" else -nominal
        before, after = self.solver.brackets(nfe)
        evals = self._time(times_between(at, self.moves(nfe), u[:, before], u[:, after]))
        if self.softened:
            evals = nominal + (evals - self._time(at))
        return Grid(knots, evals)

    def skipped(self, nfe: int) -> Tensor:
        """The fraction of the coordinate's range before a learned start, [K, 1]."""
        x = self.octaves(nfe)
        return MOST_SKIPPED * torch.sigmoid(self.begin.double() + x * self.delay.double())

    def moves(self, nfe: int) -> Tensor:
        """The moves of the network times [K, E], as signed fractions of their room."""
        places = tuple(j / max(nfe - 1, 1) for j in range(nfe))
        weights = spline(places, self.points).to(self.offsets.device)
        r = self.offsets.double() + self.octaves(nfe) * self.drift.double()
        return self.window * torch.tanh(weighted(r, weights))

    def tableau(self, nfe: int) -> tuple[Grid, Tableau]:
        """The grids of an NFE and their coefficients."""
        grid = self.grid(nfe)
        tableau = self.solver.tableau(self.noise, grid)
        if self.start_time:
            tableau = begun(tableau, self.noise, grid.knots[:, :1], self.variance, self.later)
        return grid, tableau

    def copy(self) -> Curve:
        """Curves of the same kind, with parameters of their own, on the CPU; nothing is learned."""
        made = Curve(
            self.noise, self.solver, self.nfes, self.ends.cpu(), self.coordinate, self.window,
            self.points, later=self.later[:, 0].tolist(),
        )  # fmt: skip
        return made.set(self.values()).requires_grad_(False)

    def values(self) -> dict[str, Tensor]:
        """The parameters by name, on the CPU, apart from what is learned."""
        return {name: getattr(self, name).detach().cpu().clone() for name in PARAMETERS}

    @torch.no_grad()
    def set(self, values: Mapping[str, Tensor]) -> Curve:
        """Itself with other parameters."""
        for name in PARAMETERS:
            getattr(self, name).copy_(values[name])
        return self

    @torch.no_grad()
    def fit(self, inner: Mapping[int, Tensor]) -> None:
        """Least squares in the logarithms of the gaps of start grids, over all NFEs.

        Levenberg's damped Gauss-Newton steps, each member for itself; a start that is the straight
        line keeps zeros.

        Args:
            inner: the coordinate at the inner knots [K, N-1], by NFE.
        """
        low, high = self.ends[:, :1], self.ends[:, 1:]
        wanted = {
            nfe: (torch.cat([low, u, high], -1) / (high - low)).diff(dim=-1).log()
            for nfe, u in inner.items()
            if u.shape[-1]
        }
        tilts = self.tilt.requires_grad
        theta = torch.cat([self.logits, self.tilt] if tilts else [self.logits], 1)
        damping = torch.full_like(theta[:, :1], 1e-3)
        if not wanted:
            return
        error, towards, square = self._normal(theta, wanted)
        idle = 0
        for _ in range(FIT_STEPS):
            if idle > 8 or bool((error < EXACT).all()):
                break
            scaled = square + torch.diag_embed(damping.expand_as(theta))
            trial = theta + torch.linalg.solve(scaled, towards)
            found = self._normal(trial, wanted)
            better = found[0] < error
            idle = 0 if bool((found[0] < 0.999 * error).any()) else idle + 1
            pick = lambda new, old, yes: torch.where(yes.view(-1, *[1] * (new.ndim - 1)), new, old)
            theta = pick(trial, theta, better)
            error, towards, square = (
                pick(new, old, better)
                for new, old in zip(found, (error, towards, square), strict=True)
            )
            damping = pick(damping / 3, damping * 4, better).clamp(1e-9, 1e9)
        self._take(theta)

    def _take(self, theta: Tensor) -> None:
        self.logits.copy_(theta[:, : self.points])
        if self.tilt.requires_grad:
            self.tilt.copy_(theta[:, self.points :])

    def _normal(self, theta: Tensor, wanted: Mapping[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The error [K] of parameters, and what is left and the matrix of the normal equations."""
        self._take(theta)
        # what the start leaves open stays near zero
        error = SMALL * theta.square().sum(-1)
        towards = -SMALL * theta
        square = SMALL * torch.eye(theta.shape[1]).to(theta).repeat(len(theta), 1, 1)
        for nfe, gaps in wanted.items():
            N, x, floor = self.solver.steps(nfe), self.octaves(nfe), GAP_FLOOR[self.coordinate]
            rises = spline_rises(tuple(i / N for i in range(N + 1)), self.points).diff(dim=0)
            made = self.gaps(x)
            p = (made - floor) / (1 - self.points * floor)
            slope = (1 - self.points * floor) * (torch.diag_embed(p) - p[:, :, None] * p[:, None])
            found = made @ rises.mT
            J = rises @ slope / found[..., None]
            J = torch.cat([J, x * J], -1)[..., : theta.shape[1]]
            r = gaps - found.log()
            error = error + r.square().mean(-1)
            towards = towards + (J.mT @ r[..., None])[..., 0] / N
            square = square + J.mT @ J / N
        return error, towards, square


def _ends(noise: NoiseSchedule, coordinate: str, inner: Sequence[Tensor], members: int) -> Tensor:
    """The coordinate at t_max and t_min [K, 2]; finite, and beyond all inner knots of the starts.

    An end where lam is infinite is that of `lam_range`, or one beyond the outermost knot there.
    """
    if coordinate == "time":
        return torch.tensor([[-noise.t_max, -noise.t_min]], dtype=torch.float64).repeat(members, 1)
    low, high = lam_range(noise)
    ends = torch.tensor([[low, high]], dtype=torch.float64).repeat(members, 1)
    real = noise.lam(torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64))
    for u in inner:
        for k in range(members if u.shape[-1] else 0):
            if u[k].min() <= ends[k, 0]:
                ends[k, 0] = torch.maximum(u[k].min() - 1, real[0])
            if u[k].max() >= ends[k, 1]:
                ends[k, 1] = torch.minimum(u[k].max() + 1, real[1])
    return ends


def weighted(values: Tensor, weights: Tensor) -> Tensor:
    """values [K, P] times weights [S, P], [K, S]; to the last bit the same for every K.

    So a curve that is read from a file gives the grids that were learned beside others.
    """
    return (values[:, None] * weights).sum(-1)


@lru_cache
def spline(places: tuple[float, ...], points: int) -> Tensor:
    """B_0 … B_P at places in [0, 1], [S, P + 1]; they are at least 0 and their sum is 1.

    (de Boor 1978, chapter X.)
    """
    degree, knots = min(DEGREE, points), spline_knots(points)
    s = torch.tensor(places, dtype=torch.float64)[:, None]
    left, right = knots[:-1], knots[1:]
    last = (right == 1) & (left < 1)
    found = ((left <= s) & ((s < right) | (last & (s == 1)))).double()
    for d in range(1, degree + 1):
        rise, fall = knots[d:-1] - knots[: -d - 1], knots[d + 1 :] - knots[1:-d]
        up = (s - knots[: -d - 1]) / rise.clamp_min(1e-300) * (rise > 0)
        down = (knots[d + 1 :] - s) / fall.clamp_min(1e-300) * (fall > 0)
        found = up * found[:, :-1] + down * found[:, 1:]
    return found


@lru_cache
def spline_rises(places: tuple[float, ...], points: int) -> Tensor:
    """The values of the curve at places as weights of the gaps, [S, P]: sum_{p>q} B_p(s)."""
    found = spline(places, points)[:, 1:]
    return found.flip(-1).cumsum(-1).flip(-1)


@lru_cache
def spline_knots(points: int) -> Tensor:
    """The knots of the spline: uniform in [0, 1], the ends repeated."""
    degree = min(DEGREE, points)
    inner = torch.linspace(0, 1, points - degree + 2, dtype=torch.float64)
    return torch.cat([torch.zeros(degree).double(), inner, torch.ones(degree).double()])


@lru_cache
def spline_gaps(points: int) -> Tensor:
    """The gaps [P] between the control points of the straight line (Greville's abscissae)."""
    degree = min(DEGREE, points)
    return spline_knots(points)[1:-1].unfold(0, degree, 1).mean(-1).diff()
