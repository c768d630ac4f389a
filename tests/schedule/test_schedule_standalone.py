"""Ten lines run a schedule file without ld3_dist: the very lines that the README shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPDiscrete
from ld3_dist.core.sample import sample
from ld3_dist.core.solver import make_solver
from ld3_dist.models import load_model
from ld3_dist.schedule.file import Schedule, noise_to_dict

README = Path(__file__).parents[2] / "README.md"
SNIPPET = """\
import json, torch

s = json.load(open("my.json"))

# predict_x0(x, t): the network's estimate of x_0 at time t; noise: unit normal
def run(predict_x0, noise):
    x = x_T = s["prior_scale"] * noise
    m = []
    for i, t in enumerate(s["evals"]):
        m.append(predict_x0(x, t))
        x = s["state"][i + 1] * x_T + sum(c * m_j for c, m_j in zip(s["outputs"][i + 1], m))
    return x
"""


def shown() -> str:
    """The first code block after the marker in the README; where there is none, the same lines."""
    text = README.read_text(encoding="utf-8") if README.is_file() else ""
    found = re.search(r"<!-- standalone -->.*?```python\n(.*?)```", text, re.DOTALL)
    return found[1] if found else SNIPPET


def namespace(schedule: Schedule, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    schedule.save(folder / "my.json")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(shown(), "README.md", "exec"), names)
    return names


def learned(noise: NoiseSchedule, solver_name: str) -> Schedule:
    """Network times and coefficients of its own."""
    solver, draw = make_solver(solver_name), torch.Generator().manual_seed(0)
    knots = discretize(noise, solver.steps(5), "karras")
    nominal = solver.nominal(noise, knots, 5)
    evals = (nominal * (0.98 + 0.04 * torch.rand(5, generator=draw).double())).clamp(
        noise.t_min, noise.t_max
    )
    table = solver.tableau(noise, Grid(knots, evals))
    outputs = table.outputs * (1 + 0.02 * torch.randn(table.outputs.shape, generator=draw).double())
    return Schedule(
        knots=knots.tolist(),
        evals=evals.tolist(),
        state=table.state.tolist(),
        outputs=outputs.tolist(),
        noise=noise_to_dict(noise),
        prior_scale=noise.prior_scale,
        solver=solver_name,
        nfe=5,
        model="tiny",
        coefficients=True,
    )


class Denoiser:
    """A smooth data predictor on any noise schedule."""

    shape = (3, 4, 4)

    def __init__(self, noise: NoiseSchedule) -> None:
        self.noise = noise

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: Any = None) -> torch.Tensor:
        return torch.tanh(x / (1 + self.noise.sigma(t).reshape(-1, 1, 1, 1)))

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return x0


@pytest.mark.parametrize("solver", ["unipc-3", "ipndm-4", "heun"])
@pytest.mark.parametrize(
    "kind", [EDM(), FlowMatching(), VPDiscrete(torch.linspace(0.999, 0.005, 100))]
)
def test_the_snippet_runs_a_schedule(
    kind: NoiseSchedule, solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule, denoiser = learned(kind, solver), Denoiser(kind)
    noise = torch.randn(4, *denoiser.shape, generator=torch.Generator().manual_seed(1)).double()
    names = namespace(schedule, tmp_path, monkeypatch)
    got = names["run"](lambda x, t: denoiser(x, torch.full((len(x),), t, dtype=x.dtype)), noise)
    expected = sample(denoiser, schedule.tableau, schedule.prior_scale * noise)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_snippet_on_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, labels = load_model("digits").denoiser, torch.arange(4)
    schedule = learned(model.noise, "dpmpp-3")
    noise = torch.randn(4, *model.shape, generator=torch.Generator().manual_seed(1))
    names = namespace(schedule, tmp_path, monkeypatch)
    with torch.no_grad():
        got = names["run"](lambda x, t: model(x, torch.full((len(x),), t), labels), noise)
        expected = sample(model, schedule.tableau, schedule.prior_scale * noise, labels)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_the_snippet_is_short_and_needs_no_ld3_dist() -> None:
    assert "ld3_dist" not in shown()
    assert len([line for line in shown().splitlines() if line.strip()]) <= 10
