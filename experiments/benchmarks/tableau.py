"""What a table costs: to build, to differentiate, and as a share of a learning iteration on the
digits model.

    python experiments/benchmarks/tableau.py [--out results/benchmarks/tableau.json]

Every solver at 8 evaluations on EDM, VP linear and VP discrete, for K = 1 and K = 64 members. Times
are the least of many repetitions, because others may be using the machine; the limits are 2 ms to
build and 4 ms to differentiate. The share is (build + backward) over one iteration of `learn`
(batch 10, hard and soft teacher forcing), medians of interleaved runs."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ld3_dist.core.distance import make_distance
from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.learning.descent import Descent, DescentConfig
from ld3_dist.core.learning.learn import Pairs, Problem
from ld3_dist.core.noise import EDM, NoiseSchedule, VPDiscrete, VPLinear
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import SOLVERS, make_solver
from ld3_dist.models import load_model

NFE = 8
REPEATS = 60
STABLE_DIFFUSION = (
    1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
).cumprod(0)


def clock(work: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def table(name: str, noise: NoiseSchedule, members: int) -> tuple[float, float]:
    """Least milliseconds of building a table with its graph, and of the backward pass to knots and
    network times.
    """
    solver = make_solver(name)
    knots = (
        discretize(noise, solver.steps(NFE), "log_snr").expand(members, -1).clone().requires_grad_()
    )
    evals = solver.nominal(noise, knots.detach(), NFE).clone().requires_grad_()
    builds, backwards = [], []
    for _ in range(REPEATS):
        made = []
        builds.append(
            clock(lambda made=made: made.append(solver.tableau(noise, Grid(knots, evals))))
        )
        total = made[0].evals.sum() + made[0].state.sum() + made[0].outputs.sum()
        backwards.append(clock(total.backward))
    return min(builds), min(backwards)


def share(name: str, members: int, gamma: float) -> dict[str, float | str | int]:
    """The table's part of a learning iteration on the digits model: built and differentiated."""
    model = load_model("digits").denoiser
    solver, noise = make_solver(name), model.noise
    knots = discretize(noise, solver.steps(NFE), "log_snr").expand(members, -1)
    pairs = Pairs(draw_noise(0, range(20), tuple(model.shape)), torch.zeros(20, *model.shape))
    config = DescentConfig(gamma=gamma, batch=10)
    session = Descent(
        Problem(
            model,
            solver,
            knots,
            pairs,
            pairs,
            make_distance("l2"),
            nfe=NFE,
        ),
        config,
    )
    batch, k = next(session.batches()), session.members()
    iterations, tables = [], []
    for _ in range(8):
        iterations.append(clock(lambda: session.step(batch[k], k, 1.0)))
        built = []
        spent = clock(lambda built=built: built.append(session.grids.tableau()[1]))
        total = built[0].evals.sum() + built[0].state.sum() + built[0].outputs.sum()
        tables.append(spent + clock(total.backward))
    iteration, spent = statistics.median(iterations[2:]), statistics.median(tables[2:])
    return {
        "solver": name, "members": members, "gamma": gamma, "iteration_ms": round(iteration, 2),
        "table_ms": round(spent, 3), "share": round(spent / iteration, 5),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/tableau.json"))
    file = parser.parse_args().out
    torch.set_num_threads(2)
    schedules = (EDM(), VPLinear(), VPDiscrete(STABLE_DIFFUSION))
    rows = []
    print(
        f"{'schedule':12} {'solver':12} {'build K=1':>10} {'K=64':>7} {'backward K=1':>13} "
        f"{'K=64':>7}   (ms)"
    )
    for noise in schedules:
        for name in SOLVERS:
            (build, back), (build_64, back_64) = table(name, noise, 1), table(name, noise, 64)
            print(
                f"{noise.name:12} {name:12} {build:10.2f} {build_64:7.2f} {back:13.2f} "
                f"{back_64:7.2f}",
                flush=True,
            )
            for members, b, d in ((1, build, back), (64, build_64, back_64)):
                row = {"schedule": noise.name, "solver": name, "members": members}
                rows.append(row | {"build_ms": round(b, 3), "backward_ms": round(d, 3)})
    shares = []
    for name in ("ipndm-4", "dpmpp-3", "unipc-3", "deis-3"):
        for members, gamma in ((1, 0.0), (1, 0.001), (8, 0.0)):
            shares.append(share(name, members, gamma))
            print(shares[-1], flush=True)
    machine = {
        "processor": platform.machine(),
        "threads": 2,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps({"machine": machine, "nfe": NFE, "tables": rows, "shares": shares}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
