"""Teacher trajectories on a fine grid, and steps between its knots.

GITS and OptimalSteps step by DDIM (Song et al. 2020, arXiv 2010.02502). From a state y at knot i,

    y_j = alpha_j m + sigma_j eps,        m = D(y, t_i),        eps = (y - alpha_i m) / sigma_i

so that one network evaluation serves all j > i. The step is exact for constant eps; for flow
matching it is the Euler step. States are compared in the variance-exploding frame y / alpha, in
which paths are straight if eps is constant.

TORS and SharpEuler look at the flow that a noise schedule is equivalent to:

    x = y / (alpha + sigma) = (1 - s) x_0 + s z,    s = sigma / (alpha + sigma),    dx/ds = eps - m

s = 1 is pure noise. For flow matching x is y and s is t. Schedules that differ by a scale alone
have the same flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser, map_condition
from ..core.errors import InputError
from ..core.grid import discretize
from ..core.memory import in_parts
from ..core.noise import EDM, NoiseSchedule
from ..core.sample import sample, states
from ..core.solver import Tableau, make_solver
from .findings import Findings, found

FINE = {"gits": 60, "optimal-steps": 40, "tors": 100, "sharp-euler": 100}
"""The fewest steps of the fine grid that each method follows; 2 * steps if that is more."""


@dataclass(frozen=True)
class Trajectory:
    """The teacher's path on a fine grid, float64 on the CPU.

    t: the knots [n+1].
    y: the teacher's states at the knots [n+1, B, d].
    m: the network's outputs at all knots but the last [n, B, d].
    condition: of the trajectories, B rows.
    device, dtype: of the network's inputs.
    """

    denoiser: Denoiser
    t: Tensor
    y: Tensor
    m: Tensor
    condition: Condition
    device: torch.device
    dtype: torch.dtype

    @property
    def noise(self) -> NoiseSchedule:
        """The noise schedule of the denoiser."""
        return self.denoiser.noise

    @property
    def alpha(self) -> Tensor:
        """alpha at the knots, [n+1, 1, 1]."""
        return self.noise.alpha(self.t)[:, None, None]

    @property
    def sigma(self) -> Tensor:
        """sigma at the knots, [n+1, 1, 1]."""
        return self.noise.sigma(self.t)[:, None, None]

    @property
    def s(self) -> Tensor:
        """The times of the equivalent flow at the knots, [n+1], decreasing."""
        return to_flow(self.noise, self.t)

    @property
    def path(self) -> Tensor:
        """The states x of the equivalent flow at the knots, [n+1, B, d]."""
        return self.y / (self.alpha + self.sigma)

    @property
    def velocity(self) -> Tensor:
        """dx/ds at all knots but the last, [n, B, d]."""
        return self.eps(self.y[:-1], self.m) - self.m

    def eps(self, y: Tensor, m: Tensor, first: int = 0) -> Tensor:
        """The noise eps [k, B, d] of states y and outputs m [k, B, d] at the knots from `first`."""
        here = slice(first, first + len(y))
        return (y - self.alpha[here] * m) / self.sigma[here]

    def step(self, m: Tensor, eps: Tensor, j: int) -> Tensor:
        """The states y_j / alpha_j [k, B, d] after steps to knot j with m and eps [k, B, d]."""
        return m + self.sigma[j] / self.alpha[j] * eps

    def outputs(self, y: Tensor, t: Tensor) -> Tensor:
        """D at states y [k, B, d] and at the first k of the times t: [k, B, d].

        It takes one call of the batch per time.
        """
        one = Tableau(t.new_zeros(1), t.new_tensor([1.0, 0.0]), t.new_tensor([[0.0], [1.0]]))
        tables = [Tableau(time[None], one.state, one.outputs) for time in t[: len(y)]]
        shape = (-1, *self.denoiser.shape)

        def run(part: slice) -> list[Tensor]:
            given = map_condition(lambda c: c[part], self.condition)
            # dtype first, device second: not every device has float64
            here = [state[part].to(self.dtype).to(self.device).view(shape) for state in y]
            called = zip(tables, here, strict=True)
            return [sample(self.denoiser, table, x, given) for table, x in called]

        return gathered(y.shape[1], run)


def follow(
    denoiser: Denoiser,
    x_T: Tensor,
    condition: Condition,
    fine: int,
    times: Tensor | None = None,
) -> Trajectory:
    """The teacher's path from x_T [B, *shape] over `fine` steps.

    The teacher is iPNDM of order 2, on the knots `times` [fine + 1]. If they are not given, it goes
    on the `fine_knots`.
    """
    noise = denoiser.noise
    t = fine_knots(noise, fine) if times is None else times
    teacher = make_solver("ipndm-2")
    table = teacher.tableau(noise, teacher.coupled(noise, t))

    def run(part: slice) -> list[Tensor]:
        given = map_condition(lambda c: c[part], condition)
        path, outputs = states(denoiser, table, x_T[part], given)
        return [*path, *outputs]

    y, m = gathered(len(x_T), run).split([fine + 1, fine])
    return Trajectory(denoiser, t, y, m, condition, x_T.device, x_T.dtype)


def fine_knots(noise: NoiseSchedule, fine: int) -> Tensor:
    """Karras's knots [fine + 1] for EDM, and uniform times for other noise schedules."""
    return discretize(noise, fine, "karras" if isinstance(noise, EDM) else "uniform")


def flow_times(noise: NoiseSchedule, steps: int) -> Tensor:
    """Knots [steps + 1] at equal distances in the time s of the equivalent flow."""
    ends = torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64)
    s = to_flow(noise, ends)
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:-1]
    return torch.cat([ends[:1], from_flow(noise, s[0] + u * (s[1] - s[0])), ends[1:]])


def to_flow(noise: NoiseSchedule, t: Tensor) -> Tensor:
    """The times s of the equivalent flow at the times t."""
    return noise.sigma(t) / (noise.alpha(t) + noise.sigma(t))


def from_flow(noise: NoiseSchedule, s: Tensor) -> Tensor:
    """The times t at which the equivalent flow has the times s, inside (0, 1)."""
    return noise.inverse((1 - s).log() - s.log())


def equal_shares(
    name: str,
    cumulative: Callable[[Trajectory], Tensor],
    denoiser: Denoiser,
    steps: int,
    x_T: Tensor,
    condition: Condition,
    fine: int | None,
    findings: Findings | None,
) -> Tensor:
    """Knots [steps + 1] between which a quantity grows by equal shares along trajectories.

    It costs `fine` evaluations of the batch x_T [B, *shape], unless the quantity is among the
    findings.

    Args:
        name: of the method whose quantity it is, one of FINE.
        cumulative: a trajectory, at equal distances in s -> the quantity from knot 0 to each knot
            [n+1], increasing.
        fine: steps n of the trajectories; if not given, 100 or 2 * steps, whichever is more.
        findings: of these trajectories; the quantity is kept there.

    Raises InputError for fewer fine steps than steps.
    """
    fine = fine_steps(name, steps, fine)
    t = flow_times(denoiser.noise, fine)
    total = found(
        findings, (name, fine), lambda: cumulative(follow(denoiser, x_T, condition, fine, t))
    )
    return at_equal_shares(denoiser.noise, t, total, steps)


def at_equal_shares(noise: NoiseSchedule, t: Tensor, total: Tensor, steps: int) -> Tensor:
    """Knots [steps + 1] at equal shares of a quantity that grows along trajectories.

    Args:
        t: knots of the trajectories [n+1].
        total: the quantity from knot 0 to each knot [n+1], increasing; linear in s between them.
    """
    s = to_flow(noise, t)
    wanted = torch.linspace(0, 1, steps + 1, dtype=total.dtype)[1:-1] * total[-1]
    right = torch.searchsorted(total, wanted).clamp(1, len(total) - 1)
    share = (wanted - total[right - 1]) / (total[right] - total[right - 1])
    inner = s[right - 1] + share * (s[right] - s[right - 1])
    return torch.cat([t[:1], from_flow(noise, inner), t[-1:]])


def fine_steps(name: str, steps: int, fine: int | None = None) -> int:
    """The steps n of the fine grid from which a method chooses `steps`.

    Args:
        name: of the method, one of FINE.
        fine: what the caller asks for; FINE of the method or 2 * steps, whichever is more, if it is
            not given.

    Raises InputError for fewer fine steps than steps.
    """
    fine = max(FINE[name], 2 * steps) if fine is None else fine
    if steps > fine:
        raise InputError(
            f"{steps} steps cannot be chosen from a fine grid of {fine} steps: make it finer"
        )
    return fine


def gathered(count: int, run: Callable[[slice], list[Tensor]]) -> Tensor:
    """The results of `run` for all B samples, [n, B, d], float64 on the CPU.

    `run` returns n tensors [b, *shape] for a part of the samples; the parts are as large as memory
    allows.
    """
    stacked = lambda part: torch.stack(run(part)).cpu()
    made = in_parts(count, count, stacked, "the teacher's trajectories")
    return torch.cat(made, 1).double().flatten(2)
