"""What the dynamic programmes look at: teacher trajectories on a fine grid, and steps between its knots.

Both programmes step by DDIM, exact for constant noise and, for flow matching, the Euler step: from a state y at knot i

    y_j = alpha_j m + sigma_j eps,        m = D(y, t_i),        eps = (y - alpha_i m) / sigma_i,

one network evaluation for all j > i. States are compared in the variance-exploding frame y / alpha, where paths are
straight if the noise is constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import InputError
from ..core.grid import discretize
from ..core.noise import EDM, NoiseSchedule
from ..core.sample import sample, states
from ..core.solver import Tableau, make_solver


@dataclass(frozen=True)
class Trajectory:
    """Fine knots t [n+1], the teacher's states y [n+1, B, d] and outputs m [n, B, d] there (float64)."""

    denoiser: Denoiser
    t: Tensor
    y: Tensor
    m: Tensor
    condition: Condition
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

    def ahead(self, i: int, y: Tensor, m: Tensor) -> Tensor:
        """Where a step from (y, m) [B, d] at knot i leads, at the knots i+1 … n, over alpha: [n-i, B, d]."""
        eps = (y - self.alpha[i] * m) / self.sigma[i]
        return m + self.sigma[i + 1 :] / self.alpha[i + 1 :] * eps

    def outputs(self, y: Tensor, t: Tensor) -> Tensor:
        """D at the states y [n', B, d] of the first knots of t, one call of the batch per knot."""
        shape = tuple(self.denoiser.shape)
        one = Tableau(t.new_zeros(1), t.new_tensor([1.0, 0.0]), t.new_tensor([[0.0], [1.0]]))
        made = [
            sample(
                self.denoiser,
                Tableau(time[None], one.state, one.outputs),
                state.to(self.dtype).view(-1, *shape),
                self.condition,
            )
            for time, state in zip(t, y, strict=False)
        ]
        return torch.stack(made).flatten(2).double()


def follow(denoiser: Denoiser, x_T: Tensor, condition: Condition, fine: int, steps: int) -> Trajectory:
    """The teacher's path from x_T [B, *shape] over `fine` steps: Karras knots for EDM, uniform in time for the others.

    Raises InputError where the fine grid has fewer steps than are to be chosen.
    """
    if steps > fine:
        raise InputError(f"{steps} steps cannot be chosen from a fine grid of {fine}: raise it")
    noise = denoiser.noise
    t = discretize(noise, fine, "karras" if isinstance(noise, EDM) else "uniform")
    teacher = make_solver("ipndm-2")
    path, outputs = states(denoiser, teacher.tableau(noise, teacher.coupled(noise, t)), x_T, condition)
    return Trajectory(
        denoiser,
        t,
        torch.stack(path).flatten(2).double(),
        torch.stack(outputs).flatten(2).double(),
        condition,
        x_T.dtype,
    )
