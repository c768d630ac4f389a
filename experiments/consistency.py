"""Is there a grid to learn in a consistency model? On a circle and on digits.

    python experiments/consistency.py        goes on where it was stopped; minutes on one core

A consistency function f(x, t) (Song et al. 2023, arXiv 2303.01469) gives the end of the trajectory
that is at x at time t, in one evaluation. Here a network is trained on points of a teacher's
trajectories and their ends. It is then a data predictor like any other. DDIM with it,

    x_{t'} = f(x_t, t) + t' (x_t - f(x_t, t)) / t

goes back along the line from its guess to where it stands, and so depends on the first noise alone:
it has a teacher's sample to be matched to, and times to learn. The sampler of the paper draws fresh
noise at each step,

    x_{t'} = f(x_t, t) + t' z,       z fresh unit noise

so that its sample is another one than the teacher's, whatever its times.

A sweep does not fit: a sweep's teacher is a solver on the model itself, here it is one on the
network that was distilled.

Writes results/flow_matching/consistency.csv (a row per model, NFE, way and seed: the loss on fresh
samples) and consistency.png.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import ld3_dist as ld3
from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.pairs import Pairs
from ld3_dist.core.sample import draw_noise, initial_state, sample, states
from ld3_dist.core.solver import make_solver
from ld3_dist.metrics.paired import interval_over_sets
from ld3_dist.schedule.sampling import draw_inputs
from ld3_dist.schedule.teaching import Teacher

FOLDER = Path(__file__).parents[1] / "results" / "flow_matching"
MODELS = {"circle": "analytic:mixture-2d", "digits": "digits"}
TEACHER = Teacher("dpmpp-3", 30, "karras")
"""Its states lie on the trajectory, as those of a predictor-corrector do not."""

GRIDS = ("uniform", "quadratic", "log_snr", "karras", "cosine")
WAYS = {"learned": {}, "learned, coefficients": {"coefficients": True}}
NFES = (1, 2, 4)
"""With one evaluation there is no time to place: nothing is learned."""

SEEDS, PAIRS, FRESH = 5, 100, 300
TRAJECTORIES, RATE = 4000, 1e-3
TRAINING = {"circle": (8000, 512), "digits": (1500, 64)}
"""Steps, and points in each."""


class Perceptron(nn.Module):
    """A network of three hidden layers for points of a plane, called as net(x, time, condition)."""

    def __init__(self) -> None:
        super().__init__()
        inner = [layer for _ in range(2) for layer in (nn.Linear(256, 256), nn.SiLU())]
        self.body = nn.Sequential(nn.Linear(18, 256), nn.SiLU(), *inner, nn.Linear(256, 2))

    def forward(self, x: Tensor, time: Tensor, condition: None = None) -> Tensor:
        """x [B, 2], time [B] -> [B, 2]."""
        angles = time[:, None] * 2.0 ** torch.arange(8)
        return self.body(torch.cat([x, angles.sin(), angles.cos()], 1))


def trajectories(
    model: ld3.Model, count: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Points of a teacher's trajectories: x [N, *shape], t [N], their ends [N, *shape], labels."""
    table = TEACHER.tableau(model)
    z, condition = draw_inputs(model, seed, range(count))
    with torch.no_grad():
        path, _ = states(model.denoiser, table, initial_state(model.denoiser, z), condition)
    *points, ends = path
    times = table.evals.float().repeat_interleave(count)
    labels = condition.repeat(len(points)) if isinstance(condition, Tensor) else None
    return torch.cat(points), times, ends.repeat(len(points), *[1] * (ends.ndim - 1)), labels


def distil(model: ld3.Model, steps: int, batch: int) -> ld3.Model:
    """A consistency model of a model: the same noise schedule, one evaluation to the end.

    A network is trained on from its weights, an exact denoiser is followed by a new network.
    """
    x, t, ends, labels = trajectories(model, TRAJECTORIES, seed=2000)
    torch.manual_seed(0)
    denoiser = copy.deepcopy(model.denoiser)
    if not isinstance(denoiser, NetworkDenoiser):
        deviation = float(ends.std())
        denoiser = NetworkDenoiser(
            Perceptron(), model.noise, model.shape, "edm", sigma_data=deviation
        )
    net, data = denoiser.net.train().requires_grad_(True), denoiser.sigma_data
    weight = (t**2 + data**2) / (t * data) ** 2  # 1 / c_out^2 of table 1 of Karras et al.
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,))
        out = denoiser(x[chosen], t[chosen], None if labels is None else labels[chosen])
        errors = (out - ends[chosen]).flatten(1).square().mean(1)
        loss = (weight[chosen] * errors).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    net.eval().requires_grad_(False)
    return ld3.Model(denoiser)


def pairs_of(model: ld3.Model, seed: int, count: int) -> Pairs:
    """Teacher pairs that are not bound to the model that made them."""
    made = ld3.teach(model, count, seed=seed, teacher=TEACHER)
    return Pairs(made.noise, made.target, made.condition)


def fresh_noise(model: ld3.Model, knots: Tensor, pairs: Pairs) -> Tensor:
    """Samples [M, *shape] of the sampler that draws fresh noise at every step."""
    x = initial_state(model.denoiser, pairs.noise)
    out = x
    for number, t in enumerate(knots[:-1].to(x.dtype)):
        if number:
            x = out + t * draw_noise(3000 + number, range(len(x)), model.shape)
        out = model.denoiser(x, t.expand(len(x)), pairs.condition)
    return out


def rows_of(name: str) -> Iterator[dict[str, object]]:
    """A row per NFE, way and seed of one model."""
    taught = ld3.load_model(MODELS[name])
    student = distil(taught, *TRAINING[name])
    given = [pairs_of(taught, seed, PAIRS) for seed in range(SEEDS)]
    test = pairs_of(taught, 1000, FRESH)
    x_T = initial_state(student.denoiser, test.noise)
    loss = lambda samples: float((samples - test.target).square().mean())
    ddim = make_solver("ddim")
    for nfe in NFES:
        base = {"model": name, "nfe": nfe}
        for way in GRIDS:
            knots = discretize(student.noise, nfe, way)
            table = ddim.tableau(student.noise, ddim.coupled(student.noise, knots, nfe))
            made = sample(student.denoiser, table, x_T, test.condition)
            yield base | {"way": way, "loss": loss(made)}
            fresh = fresh_noise(student, knots, test)
            yield base | {"way": f"{way}, fresh noise", "loss": loss(fresh)}
        for way, settings in WAYS.items() if nfe > 1 else ():
            for seed, pairs in enumerate(given):
                schedule = ld3.learn(student, "ddim", nfe, pairs, seed=seed, **settings)
                made = sample(student.denoiser, schedule.table_for(student), x_T, test.condition)
                yield base | {"way": way, "seed": seed, "loss": loss(made)}


def draw(table: pd.DataFrame, file: Path) -> None:
    """A panel per model: loss against NFE, the learned ones with their intervals."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(MODELS)), MODELS, strict=True):
        rows = table[table["model"] == name]
        for way in GRIDS:
            one = rows[rows["way"] == way]
            panel.plot(one["nfe"], one["loss"], "x:", label=way)
        for way in WAYS:
            found = [
                interval_over_sets(np.log(group["loss"].to_numpy()))
                for _, group in rows[rows["way"] == way].groupby("nfe")
            ]
            middle, low, high = (
                np.exp([getattr(one, part) for one in found]) for part in ("value", "low", "high")
            )
            panel.errorbar(NFES[1:], middle, [middle - low, high - middle], fmt="o-", label=way)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}" if name == "digits" else NullFormatter())
        panel.set_xticks(NFES)
        panel.set_xlabel("evaluations of the consistency function")
        panel.set_title(name)
    figure.axes[0].set_ylabel("distance to the teacher, fresh samples")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    file = Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER) / "consistency.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["model"])
    for name in MODELS:
        if name in set(table["model"]):
            continue
        found = pd.DataFrame(rows_of(name))
        table = found if table.empty else pd.concat([table, found])
        table.to_csv(file, index=False, float_format="%.6g")
        print(f"{name}: done", flush=True)
    draw(table, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
