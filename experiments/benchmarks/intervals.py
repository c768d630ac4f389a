"""Coverage of the intervals: how often a 95 % interval holds a truth that is known.

    python experiments/benchmarks/intervals.py [--repetitions 500] [--samples 1000]
        [--out results/benchmarks/intervals.json]

Four minutes on one core. The ground of the first part is a Gaussian of 8 dimensions with unequal
variances. Its denoiser is linear, so a sampler is an affine map of the noise, found here by
sampling the origin and the unit vectors: x_0 = A z + b. With Delta the difference to the teacher's
map, the loss of a sample is mean_k (Delta_A z + Delta_b)_k^2, and its mean over z ~ N(0, I) is
(|Delta_A|^2 + |Delta_b|^2) / 8 in closed form. Medians and interquartile means are taken from
LARGE losses. The schedules compared are iPNDM-3's Karras grid at 5 evaluations and the same grid
with rho 6.5 in place of 7, two similar ones.

The second part has heavy tails: pairs of log-normal losses exp(s (g + 0.2 e)), g shared. At s =
1.5, 2 and 2.5 the worst hundredth carries about 20, 37 and 57 % of the mean, as the losses of
learned schedules do. The third part has seeds: S schedules per cell and level, whose log losses
differ by seed, in three cells that share seeds and samples."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ld3_dist.core.grid import discretize
from ld3_dist.core.noise import EDM, NoiseSchedule
from ld3_dist.core.sample import sample
from ld3_dist.core.solver import make_solver
from ld3_dist.metrics.paired import (
    Estimate,
    compare,
    interval_over_sets,
    over_seeds,
    summary,
)
from ld3_dist.metrics.resampling import STATISTICS, resampled, statistic_of

LARGE = 4_000_000
SETS = 5
Losses = NDArray[np.float64]


class Gaussian:
    """N(mean, diag(std^2)): D(x, t) = mean + std^2 / (std^2 + t^2) (x - mean)."""

    noise: NoiseSchedule = EDM()
    shape: tuple[int, ...] = (8,)
    std = torch.linspace(0.2, 1.6, 8, dtype=torch.float64)
    mean = torch.linspace(-1, 1, 8, dtype=torch.float64)

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        """Images [B, 8] at times [B] -> the expected data."""
        gain = self.std**2 / (self.std**2 + t.view(-1, 1) ** 2)
        return self.mean + gain * (x - self.mean)

    def decode(self, x0: Tensor) -> Tensor:
        """The samples are the images."""
        return x0


def affine(solver: str, knots: Tensor) -> tuple[Losses, Losses]:
    """A [8, 8] and b [8] of a sampler."""
    rule, model = make_solver(solver), Gaussian()
    table = rule.tableau(model.noise, rule.coupled(model.noise, knots))
    points = torch.cat([torch.zeros(1, 8), torch.eye(8)]).double()
    made = sample(model, table, points).numpy()
    return (made[1:] - made[0]).T, made[0]


def maps() -> list[tuple[Losses, Losses]]:
    """Delta_A and Delta_b of the two schedules."""
    teacher = affine("unipc-3", discretize(EDM(), 20, "karras"))
    steps, ends = torch.linspace(0, 1, 6, dtype=torch.float64), (EDM().t_max, EDM().t_min)
    found = []
    for rho in (7.0, 6.5):
        high, low = (end ** (1 / rho) for end in ends)
        knots = (high + steps * (low - high)) ** rho
        a, b = affine("ipndm-3", knots)
        found.append((a - teacher[0], b - teacher[1]))
    return found


def losses_of(delta: tuple[Losses, Losses], z: Losses) -> Losses:
    """Losses of noise [n, 8] -> [n]."""
    return ((z @ delta[0].T + delta[1]) ** 2).mean(1)


def truths(a: Losses, b: Losses) -> dict[str, tuple[float, float]]:
    """Statistics of two schedules from many losses."""
    return {s: (statistic_of(a, s), statistic_of(b, s)) for s in STATISTICS}


class Tally:
    """How often intervals hold the truth, on which side they miss it, and how wide they are."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[bool, bool, float]]] = {}

    def add(self, name: str, truth: float, interval: Estimate, width: float | None = None) -> None:
        """One interval; `width` in place of its ends' difference."""
        wide = interval.high - interval.low if width is None else width
        self.found.setdefault(name, []).append((truth < interval.low, truth > interval.high, wide))

    def table(self) -> dict[str, dict[str, float]]:
        """By name: coverage, share of misses on either side, median width."""
        table = {}
        for name, found in self.found.items():
            below, above, width = (np.array(column) for column in zip(*found, strict=True))
            table[name] = {
                "coverage": round(1 - float(below.mean() + above.mean()), 4),
                "truth below": round(float(below.mean()), 4),
                "truth above": round(float(above.mean()), 4),
                "median width": float(f"{np.median(width):.4g}"),
            }
        return table


def judge(
    tally: Tally,
    a: Losses,
    b: Losses,
    truth: dict[str, tuple[float, float]],
    other: Losses | None = None,
) -> None:
    """Every interval of one repetition.

    Args:
        a, b: losses of two schedules on the same samples.
        other: losses of the second on other samples, for the unpaired intervals.
    """
    for name, estimate in vars(summary(a)).items():
        tally.add(name, truth[name][0], estimate)
    for paired in (True,) if other is None else (True, False):
        for statistic in STATISTICS:
            x, y = truth[statistic]
            second = b if paired or other is None else other
            found = compare(a, second, statistic, paired=paired)
            how = "paired" if paired else "unpaired"
            tally.add(f"{how} difference of {statistic}s", x - y, found.difference)
            log_width = math.log(found.ratio.high / found.ratio.low)
            tally.add(f"{how} ratio of {statistic}s", x / y, found.ratio, log_width)
    drawn = resampled(a, "mean", 2000, 0) / resampled(b, "mean", 2000, 0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    plain = Estimate(math.nan, float(low), float(high))
    x, y = truth["mean"]
    tally.add("for comparison: percentiles of the paired ratio of means", x / y, plain)


def gaussian(repetitions: int, samples: int) -> dict[str, Any]:
    """The first part."""
    deltas, rng = maps(), np.random.default_rng(1)
    large = rng.normal(size=(LARGE, 8))
    truth = truths(*(losses_of(delta, large) for delta in deltas))
    exact = [float((a**2).sum() + (b**2).sum()) / 8 for a, b in deltas]
    for found, known in zip(truth["mean"], exact, strict=True):
        assert abs(found / known - 1) < 0.01, (found, known)
    truth["mean"] = exact[0], exact[1]
    tally = Tally()
    for _ in range(repetitions):
        z = rng.normal(size=(samples, 8))
        a, b = (losses_of(delta, z) for delta in deltas)
        judge(tally, a, b, truth, losses_of(deltas[1], rng.normal(size=(samples, 8))))
        sets = losses_of(deltas[0], rng.normal(size=(SETS * samples, 8)))
        means = sets.reshape(SETS, samples).mean(1)
        tally.add(f"mean over {SETS} sets, Student's t", exact[0], interval_over_sets(means))
    table, widths = tally.table(), {}
    for statistic in STATISTICS:
        pair = (table[f"{how} ratio of {statistic}s"] for how in ("paired", "unpaired"))
        paired, unpaired = (found["median width"] for found in pair)
        widths[statistic] = round(paired / unpaired, 4)
    return {
        "mean losses": exact,
        "intervals": table,
        "width of a paired interval of the ratio over that of an unpaired one": widths,
    }


def heavy(s: float, repetitions: int, samples: int) -> dict[str, Any]:
    """The second part."""
    rng = np.random.default_rng(2)

    def pair(n: int) -> tuple[Losses, Losses]:
        g, e = rng.normal(size=n), rng.normal(size=(2, n))
        return np.exp(s * (g + 0.2 * e[0])), 1.1 * np.exp(s * (g + 0.2 * e[1]))

    truth = truths(*pair(LARGE))
    mean = math.exp(s * s * 1.04 / 2)
    truth["mean"] = mean, 1.1 * mean
    tally = Tally()
    for _ in range(repetitions):
        judge(tally, *pair(samples), truth)
    return tally.table()


def seeded(seeds: int, repetitions: int, samples: int) -> dict[str, Any]:
    """The third part: one level against another, 10 % apart, over three cells."""
    rng, tally = np.random.default_rng(3), Tally()
    shift = math.log(1.1)
    for _ in range(repetitions):
        g = rng.normal(size=samples)
        effect = rng.normal(size=(2, seeds))
        base, level = [], []
        for cell in range(3):
            own = 0.05 * (effect[:, :, None] + 0.5 * rng.normal(size=(2, seeds, 1)))
            noise = 0.2 * rng.normal(size=(2, seeds, samples))
            made = np.exp((1 + 0.2 * cell) * g + noise + own)
            base.append(made[0])
            level.append(made[1] * math.exp(shift))
        tally.add(f"{seeds} seeds, 3 cells", 1.1, over_seeds(level, base)[0])
    return tally.table()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    size = asked.repetitions, asked.samples
    found: dict[str, Any] = {"repetitions": size[0], "samples": size[1]}
    found["gaussian"] = gaussian(*size)
    found["heavy tails, log-normal"] = {f"s = {s}": heavy(s, *size) for s in (1.5, 2.0, 2.5)}
    found["over seeds"] = {k: v for s in (3, 5) for k, v in seeded(s, *size).items()}
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
