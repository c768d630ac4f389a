"""Schedules that several test files run over, and one thread to do it: small tensors gain nothing
from a second.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ld3_dist.core.grid import discretize
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPCosine, VPDiscrete, VPLinear
from ld3_dist.core.solver import make_solver
from ld3_dist.schedule.file import Schedule, noise_to_dict

STABLE_DIFFUSION = (
    1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
).cumprod(0)
SCHEDULES: dict[str, NoiseSchedule] = {
    "edm": EDM(),
    "vp-linear": VPLinear(),
    "vp-cosine": VPCosine(),
    "vp-discrete": VPDiscrete(STABLE_DIFFUSION),
    "vp-zero-snr": VPDiscrete(torch.linspace(0.99, 0.0, 20)),
    "flow": FlowMatching(),
}


def inside(noise: NoiseSchedule, low: float = -1.5, high: float = 2.0) -> NoiseSchedule:
    """The same schedule between two half-log-SNRs, away from its singular ends."""
    t_min, t_max = noise.inverse(torch.tensor([high, low], dtype=torch.float64)).tolist()
    if isinstance(noise, VPDiscrete):
        return VPDiscrete(noise.alphas_cumprod, t_min=t_min, t_max=t_max)
    return type(noise)(t_min=t_min, t_max=t_max)


def coupled_schedule(
    noise: NoiseSchedule, nfe: int, grid: str = "uniform", solver: str = "ipndm-3"
) -> Schedule:
    """A schedule file's content: a solver on a hand-made grid."""
    rule = make_solver(solver)
    knots = discretize(noise, rule.steps(nfe), grid)
    table = rule.tableau(noise, rule.coupled(noise, knots, nfe))
    return Schedule(
        knots=tuple(knots.tolist()),
        evals=tuple(table.evals.tolist()),
        state=tuple(table.state.tolist()),
        outputs=tuple(map(tuple, table.outputs.tolist())),
        noise=noise_to_dict(noise),
        prior_scale=noise.prior_scale,
        solver=solver,
        nfe=nfe,
        model="nobody's",
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For the files that import it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
