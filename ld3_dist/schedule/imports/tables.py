"""The coefficient tables of DyWeight and EPD, which are linear in noise and outputs.

Both step in the levels ς = sigma / alpha, with states x = y / alpha (for a flow model ς = sigma,
x = y), from knot to knot:

    d = (x - D) / ς          the derivative at a state
    x' = x + (ς' - ς) sum_j w_j d_j

DyWeight weighs the derivatives of all steps so far. Its weights need not add up to 1, so that the
state arrives at another level than intended, where the next step begins:

    ς_{i+1} <- ς_i + (sum_j w_ij) (ς_{i+1} - ς_i)

EPD takes the derivatives of P points inside a step, each reached by an Euler step to the level
ς^(1-r) ς'^r. Both hand the network a time of its own, a multiple of the level. A state is
followed here as its coefficients of unit noise and of the outputs.

With an analytical first step, d_0 = x / (1 + ς^2)^(1/2) asks no network: the schedule begins after
it, at the level of the first knot behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.noise import NoiseSchedule
from .checkpoints import EPD, DyWeight, Settings
from .lists import level_range, levels_at, times_at


@dataclass
class Built:
    """A table that grows by one evaluation after the other.

    most: E, the number of evaluations there will be.
    evals: network times so far.
    rows: coefficients of the states y_0, y_1, … [1 + E] each, of unit noise first.
    moved: the network times that had to be moved into the model's range.
    """

    noise: NoiseSchedule
    most: int
    evals: list[float] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)

    def noise_of(self, scale: float) -> Tensor:
        """The state scale * unit noise."""
        state = torch.zeros(1 + self.most, dtype=torch.float64)
        state[0] = scale
        return state

    def evaluate(self, x: Tensor, level: Tensor) -> tuple[Tensor, float]:
        """Ask the network at a state x and a level; the output and the level it was asked at."""
        low, high = level_range(self.noise)
        inside = float(level.abs().clamp(low, high))
        if not math.isclose(inside, float(level.abs()), rel_tol=1e-6):
            self.moved.append(float(level.abs()))
        if math.isclose(inside, high, rel_tol=1e-6):
            t = torch.tensor(self.noise.t_max, dtype=torch.float64)
        else:
            t = times_at(self.noise, torch.tensor(inside, dtype=torch.float64))
        self.rows.append(self.frame(t) * x)
        self.evals.append(float(t))
        output = torch.zeros_like(x)
        output[len(self.evals)] = 1.0
        return output, inside

    def frame(self, t: Tensor) -> Tensor:
        """y / x at a time."""
        return torch.ones_like(t) if self.noise.name == "flow" else self.noise.alpha(t)


@dataclass(frozen=True)
class Table:
    """A finished table: knots [N+1], evals [E], state [E+1], outputs [E+1, E], prior_scale.

    moved: network times outside the model's range, which were moved to its end.
    """

    knots: tuple[float, ...]
    evals: tuple[float, ...]
    state: tuple[float, ...]
    outputs: tuple[tuple[float, ...], ...]
    prior_scale: float
    moved: tuple[float, ...]


def dyweight_table(learned: DyWeight, noise: NoiseSchedule, shift: float | None = None) -> Table:
    """The table of a DyWeight checkpoint on a noise schedule.

    Args:
        shift: of a flow model's grid.

    Raises InputError for a grid that the noise schedule does not have.
    """
    settings = learned.settings
    levels = grid_levels(settings, noise, shift)
    flow = noise.name == "flow"
    first = int(settings.analytic)
    built = Built(noise, settings.steps - first)
    x = built.noise_of(1.0 if flow else float(levels[0]))
    here, slopes = levels[0], []
    for i in range(settings.steps):
        if i < first:
            slopes.append(x / (1 + here**2).sqrt())
        else:
            output, asked = built.evaluate(x, learned.scales[i] * here)
            # a flow network's velocity is (x - D) over the time it was asked at
            slopes.append((x - output) / (asked if flow else here + 1e-8))
        w, length = learned.weights[i, : i + 1], levels[i + 1] - here
        x = x + length * sum((w[j] * slopes[j] for j in range(i + 1)), torch.zeros_like(x))
        here = here + w.sum() * length
    return finished(built, x, levels[first:])


def epd_table(learned: EPD, noise: NoiseSchedule, shift: float | None = None) -> Table:
    """The table of an EPD checkpoint on a noise schedule; as `dyweight_table`."""
    settings = learned.settings
    levels = grid_levels(settings, noise, shift)
    points = learned.places.shape[1]
    asked_first = not settings.analytic
    built = Built(noise, settings.steps * (1 + points) - (not asked_first))
    x = built.noise_of(1.0 if noise.name == "flow" else float(levels[0]))
    for i in range(settings.steps):
        here, there = levels[i], levels[i + 1]
        if i == 0 and not asked_first:
            slope = x / (1 + here**2).sqrt()
        else:
            slope = (x - built.evaluate(x, here)[0]) / here
        step = torch.zeros_like(x)
        for j in range(points):
            r = learned.places[i, j]
            level = there**r * here ** (1 - r)
            inner = x + (level - here) * slope
            output, _ = built.evaluate(inner, learned.scales[i, j] * level)
            step += learned.weights[i, j] * learned.lengths[i, j] * (inner - output) / level
        x = x + (there - here) * step
    return finished(built, x, levels)


def finished(built: Built, x: Tensor, levels: Tensor) -> Table:
    """The table that ends with the state x; its knots lie at the levels."""
    noise = built.noise
    low, high = level_range(noise)
    knots = times_at(noise, levels.clamp(low, high))
    for i, end, t in ((0, high, noise.t_max), (-1, low, noise.t_min)):
        knots[i] = t if math.isclose(float(levels[i].clamp(low, high)), end) else knots[i]
    rows = torch.stack([*built.rows, built.frame(knots[-1]) * x])
    scale = float(rows[0, 0])
    if not scale > 0:
        raise InputError(f"the schedule starts from {scale:g} times the noise; it is damaged")
    return Table(
        tuple(knots.tolist()),
        tuple(built.evals),
        tuple((rows[:, 0] / scale).tolist()),
        tuple(map(tuple, rows[:, 1:].tolist())),
        scale,
        tuple(built.moved),
    )


def grid_levels(settings: Settings, noise: NoiseSchedule, shift: float | None = None) -> Tensor:
    """The levels [N+1] of the grid that a checkpoint was learned on, for a noise schedule.

    Raises InputError for a flow's grid on another schedule and the reverse, and for a flow's grid
    without a shift.
    """
    if (settings.grid == "flowmatch") != (noise.name == "flow"):
        wanted = "a flow model" if settings.grid == "flowmatch" else "a diffusion model"
        raise InputError(
            f"schedule_type = {settings.grid!r} is for {wanted}, but the model's noise schedule is "
            f"{noise.name}; name the model that it was learned for"
        )
    N = settings.steps
    u, rho = torch.linspace(0, 1, N + 1, dtype=torch.float64), settings.rho
    if settings.grid == "flowmatch":
        return _flow_levels(settings, u, shift)
    low, high = level_range(noise)
    if settings.grid == "polynomial":
        return (high ** (1 / rho) * (1 - u) + low ** (1 / rho) * u) ** rho
    if settings.grid == "logsnr":
        return (math.log(high) * (1 - u) + math.log(low) * u).exp()
    if settings.grid == "time_uniform":
        return _vp_levels(low, high, (1 + u * (1e-3 ** (1 / rho) - 1)) ** rho)
    if noise.t_max > 1:
        raise InputError(
            f"schedule_type = 'discrete' counts network steps, and the noise schedule {noise.name} "
            "has none; name the model that it was learned for"
        )
    t = (noise.t_max + u * (noise.t_min ** (1 / rho) - noise.t_max)) ** rho
    return levels_at(noise, t)


def _vp_levels(low: float, high: float, t: Tensor) -> Tensor:
    """Levels at times t of the linear variance-preserving schedule through both ends."""
    near, far, first = math.log(low**2 + 1), math.log(high**2 + 1), 1e-3
    rise = 2 * (near / first - far) / (first - 1)
    return (0.5 * rise * t**2 + (far - 0.5 * rise) * t).expm1().sqrt()


def _flow_levels(settings: Settings, u: Tensor, shift: float | None) -> Tensor:
    """A flow's levels: equal steps, of which the shift makes s σ / (1 + (s - 1) σ).

    The last level of EPD's files is itself shifted once; DyWeight's grid ends at 0, after N equal
    steps from 1 to 1 / N.
    """
    flow = settings.flow
    if shift is None and "mu" in flow:
        shift = math.exp(flow["mu"])
    last = flow["last"]
    if shift is None and last:
        shift = last * (1 - 1e-3) / (1e-3 * (1 - last))
    if shift is None:
        raise InputError(
            "the checkpoint does not say the shift of its grid, and the model has none; give it "
            "with --shift (for FLUX.1-dev at 1024 pixels 3.158)"
        )
    plain = (1 - u) + last * u
    return shift * plain / (1 + (shift - 1) * plain)
