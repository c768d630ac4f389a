"""Where learning spends its time: the share of `learn`'s wall time inside the network, forward and
backward.

    python experiments/benchmarks/profile_learn.py [--threads 2] [--out
    results/benchmarks/profile_learn.json]

The network is wrapped in two identities that note the time when the forward pass enters and leaves
it, and when the backward pass does. On a CPU autograd runs the nodes of one evaluation one after
the other, so what lies between is the network and nothing else."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from ld3_dist.core.distance import make_distance
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.learn import Problem, learn, make_config
from ld3_dist.core.solver import make_solver
from ld3_dist.models import open_model
from ld3_dist.schedule.teaching import teach


class Clock:
    """Seconds inside the network."""

    def __init__(self) -> None:
        self.forward = self.backward = self.started = 0.0
        self.calls = 0


class Entry(torch.autograd.Function):
    """Before the network: its backward pass is the last thing that happens in the network's."""

    @staticmethod
    def forward(ctx, x, t, clock):
        ctx.clock = clock
        return x.view_as(x), t.view_as(t)

    @staticmethod
    def backward(ctx, *grad_outputs):
        ctx.clock.backward += time.perf_counter() - ctx.clock.started
        return *grad_outputs, None


class Exit(torch.autograd.Function):
    """Behind the network: its backward pass is the first."""

    @staticmethod
    def forward(ctx, out, clock):
        ctx.clock = clock
        return out.view_as(out)

    @staticmethod
    def backward(ctx, *grad_outputs):
        ctx.clock.started = time.perf_counter()
        return *grad_outputs, None


class Timed:
    """A denoiser whose time is taken."""

    def __init__(self, inner, clock: Clock) -> None:
        self.inner, self.clock = inner, clock
        self.noise, self.shape, self.decode = inner.noise, inner.shape, inner.decode

    def __call__(self, x, t, condition=None):
        x, t = Entry.apply(x, t, self.clock)
        start = time.perf_counter()
        out = self.inner(x, t, condition)
        self.clock.forward += time.perf_counter() - start
        self.clock.calls += 1
        return Exit.apply(out, self.clock)


def measure(solver_name: str, nfe: int, members: int, gamma: float, epochs: int) -> dict:
    """The share for one setting."""
    opened = open_model("digits")
    schedule = opened.denoiser.noise
    pairs = teach(opened, 100)
    solver, clock = make_solver(solver_name), Clock()
    knots = discretize(schedule, solver.steps(nfe), "log_snr").repeat(members, 1)
    config = make_config(gamma=gamma, epochs=epochs, patience=epochs)
    run = learn(
        Problem(
            Timed(opened.denoiser, clock),
            solver,
            knots,
            pairs[:50],
            pairs[50:],
            make_distance("l2"),
            nfe=nfe,
        ),
        config,
    )
    next(run)  # the first validation warms up
    clock.forward = clock.backward = 0.0
    start = time.perf_counter()
    for _ in run:
        pass
    wall = time.perf_counter() - start
    inside = clock.forward + clock.backward
    return {
        "solver": solver_name,
        "nfe": nfe,
        "members": members,
        "gamma": gamma,
        "wall_s": round(wall, 2),
        "forward_s": round(clock.forward, 2),
        "backward_s": round(clock.backward, 2),
        "share": round(inside / wall, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = []
    print(
        f"{'solver':>8} {'nfe':>4} {'members':>8} {'gamma':>6} "
        f"{'wall s':>7} {'forward s':>10} {'backward s':>11} {'share':>6}"
    )
    for solver, nfe, members, gamma in (
        ("unipc-3", 5, 1, 0.0), ("unipc-3", 5, 3, 0.001),
        ("dpmpp-3", 4, 6, 0.001), ("ipndm-3", 8, 3, 0.001),
    ):  # fmt: skip
        r = measure(solver, nfe, members, gamma, asked.epochs)
        rows.append(r)
        print(
            f"{solver:>8} {nfe:>4} {members:>8} {gamma:>6} {r['wall_s']:>7} {r['forward_s']:>10} "
            f"{r['backward_s']:>11} "
            f"{r['share']:>6.1%}"
        )
    if asked.out:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "threads": asked.threads,
            "torch": torch.__version__,
        }
        command = " ".join(["python", "experiments/benchmarks/profile_learn.py", *sys.argv[1:]])
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(
            json.dumps({"command": command, "machine": machine, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
