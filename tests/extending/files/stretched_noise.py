"""A noise schedule: variance-preserving, with log alpha(t) = -t^p.

A schedule that is not variance-preserving derives from NoiseSchedule and gives alpha, sigma and
their derivatives.
"""

from dataclasses import dataclass

from torch.nn.functional import softplus

from ld3_dist.core.noise import VariancePreserving


@dataclass(frozen=True)
class Stretched(VariancePreserving):
    """All that determines it is a field with a default, so that schedule files can hold it."""

    p: float = 1.5
    t_min: float = 0.01
    t_max: float = 3.0
    name: str = "stretched"

    def log_alpha(self, t):
        return -(t**self.p), -self.p * t ** (self.p - 1)

    def inverse(self, lam):
        return (0.5 * softplus(-2 * lam)) ** (1 / self.p)
