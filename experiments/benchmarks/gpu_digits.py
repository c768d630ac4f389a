"""Section `digits` of the GPU benchmark: the same schedules learned on the GPU and on the CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from gpu_bench import L2, SOLVER, Bench, settings

from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.learn import Pairs, Problem, Progress, learn
from ld3_dist.core.solver import make_solver
from ld3_dist.models import Model, ModelOptions, open_model
from ld3_dist.schedule.sampling import make_samples
from ld3_dist.schedule.teaching import teach


def digits(bench: Bench) -> Iterator[dict]:
    """Three seeds of the embedded model, learned with default settings on the device and the CPU.

    The float64 run is on the CPU and stops early: it says how far from exact the other two are.
    """
    nfe, epochs, early = 5, bench.size.epochs, bench.size.early
    with threads(4), settings(tf32=False):
        yield {"solver": SOLVER, "nfe": nfe, "epochs": epochs, "threads": torch.get_num_threads()}
        here = Ground(open_model("digits"), torch.device("cpu"))
        there = Ground(open_model("digits", ModelOptions(device=str(bench.device))), bench.device)
        pairs = here.teacher_pairs(0, 4 * bench.size.pairs)
        fresh = there.teacher_pairs(100_000, 100_000 + bench.size.fresh)
        timed(bench, there, pairs, nfe, 1)  # a warm-up
        gpu, gpu_s = timed(bench, there, pairs, nfe, epochs)
        yield {"start": gpu[0].valid.tolist(), "gpu": ends(gpu, gpu_s, there.losses(gpu, fresh))}
        cpu, cpu_s = timed(bench, here, pairs, nfe, epochs)
        yield {"cpu": ends(cpu, cpu_s, there.losses(cpu, fresh)), "gpu_and_cpu": gaps(gpu, cpu)}
        exact = Ground(open_model("digits", ModelOptions(dtype="float64")), torch.device("cpu"))
        precise = Pairs(pairs.noise.double(), pairs.target.double(), pairs.condition)
        ref, _ = timed(bench, exact, precise, nfe, early)
        yield {"gpu_and_float64": gaps(gpu, ref), "cpu_and_float64": gaps(cpu, ref)}
        with settings(tf32=True):
            fast, fast_s = timed(bench, there, pairs, nfe, epochs)
        yield {
            "tf32": ends(fast, fast_s, there.losses(fast, fresh)),
            "tf32_and_cpu": gaps(fast, cpu),
        }


@contextmanager
def threads(most: int) -> Iterator[None]:
    """At most so many threads of the CPU, for a while: more would wait for each other here."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Ground:
    """The digits model on a device."""

    opened: Model
    device: torch.device

    def teacher_pairs(self, start: int, stop: int) -> Pairs:
        """Pairs of a range of samples, on the device."""
        return teach(self.opened, indices=range(start, stop))

    def learn(self, pairs: Pairs, nfe: int) -> Iterator[Progress]:
        """Seeds 0, 1, 2 side by side; each learns from a quarter of the pairs, one selects."""
        solver, noise = make_solver(SOLVER), self.opened.denoiser.noise
        knots = discretize(noise, solver.steps(nfe), "log_snr").repeat(3, 1)
        pairs, quarter = pairs.to(self.device), len(pairs) // 4
        subsets = torch.arange(3 * quarter).view(3, quarter)
        problem = Problem(
            self.opened.denoiser, solver, knots, pairs[quarter:], pairs[:quarter], L2,
            nfe=nfe, seeds=[0, 1, 2], subsets=subsets,
        )  # fmt: skip
        yield from learn(problem)

    def losses(self, run: list[Progress], fresh: Pairs) -> list[float]:
        """Mean loss of what each member found, on fresh pairs."""
        tables = (run[-1].tableau.take(torch.tensor(k)) for k in range(3))
        made = (make_samples(self.opened, table, fresh.noise, fresh.condition) for table in tables)
        return [float(L2(x, fresh.target).double().mean()) for x in made]


Run = tuple[list[Progress], float]


def timed(bench: Bench, ground: Ground, pairs: Pairs, nfe: int, epochs: int) -> Run:
    """A run's first epochs, fewer where time is up, and their seconds; epochs end by waiting."""
    began, run = time.perf_counter(), []
    for progress in ground.learn(pairs, nfe):
        run.append(progress)
        if progress.epoch == epochs or bench.clock.left() < 0:
            break
    return run, time.perf_counter() - began


def ends(run: list[Progress], wall: float, fresh: list[float]) -> dict:
    """What a run found, by seed."""
    last = run[-1]
    return {
        "wall_s": wall, "epochs": last.epoch, "held_out": last.best_valid.tolist(), "fresh": fresh,
        "knots": last.best.knots.tolist(), "evals": last.best.evals.tolist(),
    }  # fmt: skip


def gaps(a: list[Progress], b: list[Progress]) -> list[dict]:
    """By epoch, the largest relative differences of two runs."""
    relative = lambda x, y: float((x / y - 1).abs().max())
    return [
        {
            "epoch": p.epoch, "held_out": relative(p.valid, q.valid),
            "knots": relative(p.best.knots, q.best.knots),
            "evals": relative(p.best.evals, q.best.evals),
        }
        for p, q in zip(a, b, strict=False)
    ]  # fmt: skip
