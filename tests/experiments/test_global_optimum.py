"""LD3 against the global optimum of its objective, found independently and stored beside the script
that found it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from schedules import one_thread  # noqa: F401

from ld3_dist.core.grid import Grid
from ld3_dist.core.sample import sample
from ld3_dist.core.solver import make_solver

STORED = json.loads(
    (Path(__file__).parents[2] / "results/benchmarks/global_optimum.json").read_text()
)


@pytest.fixture(scope="module")
def benchmark() -> object:
    file = Path(__file__).parents[2] / "experiments/benchmarks/global_optimum.py"
    sys.path.append(str(file.parent))  # for its neighbour
    spec = importlib.util.spec_from_file_location("global_optimum", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "cell", STORED["cells"], ids=lambda cell: f"{cell['solver']}-{cell['nfe']}"
)
def test_learning_came_within_one_percent_of_the_global_optimum(
    cell: dict, benchmark: object
) -> None:
    """And what is stored is the loss of the stored grid."""
    assert cell["ratio"] < 1.01
    mixture, pairs = benchmark.problem()  # type: ignore[attr-defined]
    solver = make_solver(cell["solver"])
    grid = Grid(*(torch.tensor(cell[name], dtype=torch.float64) for name in ("knots", "evals")))
    x_0 = sample(
        mixture, solver.tableau(mixture.noise, grid), mixture.noise.prior_scale * pairs.noise
    )
    assert float(((x_0 - pairs.target) ** 2).mean()) == pytest.approx(cell["optimum"], rel=1e-6)


@pytest.mark.slow  # quicker: what was committed, above
def test_learning_reaches_the_stored_optimum_again(benchmark: object) -> None:
    cell = next(c for c in STORED["cells"] if (c["solver"], c["nfe"]) == ("dpmpp-2", 3))
    config = replace(benchmark.CONFIG, lr=0.1, lr_times=0.5, epochs=300)  # type: ignore[attr-defined]
    losses, _ = benchmark.learned(make_solver("dpmpp-2"), 3, config, extra=8)  # type: ignore[attr-defined]
    assert float(losses.min()) < 1.01 * cell["optimum"]
