"""A user's own noise schedule in LD3Scheduler: another way to write a table or the straight path
runs, anything else is refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pipelines_on_disk import diffusers
from torch import Tensor

from ld3_dist.core.noise import FlowMatching, NoiseIsTime, VPDiscrete, VPLinear
from ld3_dist.models.diffusers.network_outputs import difference

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
TABLE = VPDiscrete((1 - BETAS).cumprod(0))


@dataclass(frozen=True)
class Path(NoiseIsTime):
    """The straight path, written anew; `bend` makes it another one."""

    t_min: float = 1e-3
    t_max: float = 1.0
    bend: float = 0.0
    name: str = "my-path"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t + self.bend * t * (1 - t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -1 + self.bend * (1 - 2 * t)

    def inverse(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True, eq=False)
class Scaled(VPLinear):
    """Stable Diffusion's table in continuous time: its betas are squares of a line."""

    factor: float = 1.0
    name: str = "my-table"

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        value, rate = TABLE.log_alpha(t)
        return self.factor * value, self.factor * rate


def test_the_straight_path_written_anew() -> None:
    assert difference(Path(), FlowMatching(), "S") is None
    said = difference(Path(bend=0.3), FlowMatching(), "S")
    assert said is not None
    assert "its noise is my-path, that of the pipeline's S is flow, and they differ: alpha(" in said


def test_a_table_in_continuous_time() -> None:
    assert difference(Scaled(t_min=0.002), TABLE, "S") is None
    assert "lam(" in str(difference(Scaled(factor=1.02), TABLE, "S"))
    assert "alpha(" in str(difference(Scaled(factor=1.5), TABLE, "S"))


def test_a_path_is_no_table() -> None:
    assert "they differ" in str(difference(Path(), TABLE, "S"))
    assert "they differ" in str(difference(Scaled(), FlowMatching(), "S"))


def test_times_that_the_pipeline_does_not_have() -> None:
    class Longer(Path):
        latest = 2.0

    said = str(difference(Longer(t_max=1.5), FlowMatching(), "S"))
    assert "from 0.001 to 1.5 in the file" in said
    early = VPDiscrete(TABLE.alphas_cumprod, t_max=0.999)
    assert "to 1 in the file" in str(difference(Scaled(), early, "S"))


def test_built_in_schedules_stay_apart_by_name() -> None:
    assert difference(VPLinear(), TABLE, "S") == (
        "its noise is vp-linear, that of the pipeline's S is vp-discrete"
    )
    assert diffusers.__version__
