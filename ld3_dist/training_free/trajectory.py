"""What the dynamic programmes look at: teacher trajectories on a fine grid, and steps between its
knots.

Both programmes step by DDIM, exact for constant noise and, for flow matching, the Euler step: from
a state y at knot i

    y_j = alpha_j m + sigma_j eps,        m = D(y, t_i),        eps = (y - alpha_i m) / sigma_i,

one network evaluation for all j > i. States are compared in the variance-exploding frame y / alpha,
where paths are straight if the noise is constant.
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


@dataclass(frozen=True)
class Trajectory:
    """Fine knots t [n+1], the teacher's states y [n+1, B, d] and outputs m [n, B, d] there:
    float64, on the CPU.
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
        """The schedule of the denoiser."""
        return self.denoiser.noise

    @property
    def alpha(self) -> Tensor:
        """At the fine knots, [n+1, 1, 1]."""
        return self.noise.alpha(self.t)[:, None, None]

    @property
    def sigma(self) -> Tensor:
        """At the fine knots, [n+1, 1, 1]."""
        return self.noise.sigma(self.t)[:, None, None]

    def eps(self, y: Tensor, m: Tensor, first: int = 0) -> Tensor:
        """The noise [k, B, d] of states y and outputs m [k, B, d] at the knots first, first + 1, …"""
        here = slice(first, first + len(y))
        return (y - self.alpha[here] * m) / self.sigma[here]

    def step(self, m: Tensor, eps: Tensor, j: int) -> Tensor:
        """Where steps with outputs m and noise eps [k, B, d] lead at knot j, over alpha: [k, B, d]."""
        return m + self.sigma[j] / self.alpha[j] * eps

    def outputs(self, y: Tensor, t: Tensor) -> Tensor:
        """D at the states y [n', B, d] of the first knots of t, one call of the batch per knot:
        [n', B, d].
        """
        one = Tableau(t.new_zeros(1), t.new_tensor([1.0, 0.0]), t.new_tensor([[0.0], [1.0]]))
        tables = [Tableau(time[None], one.state, one.outputs) for time in t[: len(y)]]
        shape = (-1, *self.denoiser.shape)

        def run(part: slice) -> list[Tensor]:
            given = map_condition(lambda c: c[part], self.condition)
            here = [
                state[part].to(self.dtype).to(self.device).view(shape) for state in y
            ]  # in this order: no float64
            return [
                sample(self.denoiser, table, x, given)
                for table, x in zip(tables, here, strict=True)
            ]

        return gathered(y.shape[1], run)


def follow(
    denoiser: Denoiser, x_T: Tensor, condition: Condition, fine: int, steps: int
) -> Trajectory:
    """The teacher's path from x_T [B, *shape] over `fine` steps: Karras knots for EDM, uniform in
    time for the others.

    Raises InputError where the fine grid has fewer steps than are to be chosen.
    """
    if steps > fine:
        raise InputError(f"{steps} steps cannot be chosen from a fine grid of {fine}: raise it")
    noise = denoiser.noise
    t = discretize(noise, fine, "karras" if isinstance(noise, EDM) else "uniform")
    teacher = make_solver("ipndm-2")
    table = teacher.tableau(noise, teacher.coupled(noise, t))

    def run(part: slice) -> list[Tensor]:
        path, outputs = states(
            denoiser, table, x_T[part], map_condition(lambda c: c[part], condition)
        )
        return [*path, *outputs]

    y, m = gathered(len(x_T), run).split([fine + 1, fine])
    return Trajectory(denoiser, t, y, m, condition, x_T.device, x_T.dtype)


def gathered(count: int, run: Callable[[slice], list[Tensor]]) -> Tensor:
    """What `run` makes of parts of the samples, n tensors [b, *shape], of all: [n, B, d], float64,
    on the CPU.
    """
    made = in_parts(
        count, count, lambda part: torch.stack(run(part)).cpu(), "the teacher's trajectories"
    )
    return torch.cat(made, 1).double().flatten(2)
