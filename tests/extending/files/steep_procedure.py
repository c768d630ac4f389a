"""A procedure with another loss: a power of the distance, so that the worst samples count more."""

from dataclasses import dataclass

from ld3_dist.core.comparison import Distance
from ld3_dist.core.learning.config import setting
from ld3_dist.core.learning.descent import Descent, DescentConfig
from ld3_dist.core.learning.objective import Objective


@dataclass(frozen=True, kw_only=True)
class SteepConfig(DescentConfig):
    steepness: float = setting(2.0, "power of the distance that is learned from", low=1.0)


class Power(Distance):
    def __init__(self, inner, power):
        super().__init__()
        self.name, self.inner, self.power, self.features = "power", inner, power, inner.features

    def between(self, a, b):
        return self.inner.between(a, b) ** self.power


class Steep(Descent):
    Config = SteepConfig

    @classmethod
    def make_objective(cls, problem, config):
        return Objective(problem.denoiser, Power(problem.distance, config.steepness))
