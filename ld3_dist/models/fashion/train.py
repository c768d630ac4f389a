"""Training of the fashion network, with the loss of `embedded.train`.

The data and everything random live on the training device. On a GPU, a step (bfloat16 convolutions,
loss, gradients, Adam) is recorded once as a CUDA graph and then replayed. A step has several
hundred small kernels, and launching them one by one would take longer than running them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import InputError
from ..embedded.train import NetworkTraining, check_positive, denoising_loss, draw_sigma
from ..weights import read_tensors, save_tensors
from .data import FashionData, scale
from .network import NULL_LABEL, SHAPE, FashionNetwork, NetworkConfig

STATE_KIND = "ld3_dist fashion training state 1"
REMEDY = "remove the file to start from scratch"
WARM_UP = 12  # steps before a CUDA graph is recorded
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig(NetworkTraining):
    """Settings of the training; after `warmup` steps lr falls to zero as a cosine.

    minutes: if given, `steps` is ignored. The speed of the first steps tells how many fit into this
    time. The record has their number; the same number as `steps` repeats the run.
    report: steps between two reports.
    graph: record the step as a CUDA graph if there is a GPU.
    """

    steps: int = 50_000
    batch: int = 512
    lr: float = 2e-3
    warmup: int = 500
    ema: float = 0.9995
    dropout: float = 0.1
    p_mean: float = -0.8
    p_std: float = 1.4
    minutes: float | None = None
    report: int = 250
    graph: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "report")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")


@dataclass(frozen=True)
class TrainProgress:
    """A report.

    step: number of steps done.
    steps: number of steps planned; None if it is not known yet.
    loss: mean since the last report.
    seconds: since the start.
    average: the network with the averaged weights.
    """

    step: int
    steps: int | None
    loss: float
    seconds: float
    average: FashionNetwork


def learning_rate(config: TrainConfig, step: int, steps: int | None) -> float:
    """Linear warm-up, then a cosine to zero at `steps`; no decay while `steps` is not known."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    fall = 1.0 if steps is None else 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return config.lr * rise * fall


def measure_sigma_data(images: Tensor) -> float:
    """Standard deviation of the pixels, rounded so that it is the same number on every machine."""
    # a histogram is exact and small
    values = torch.bincount(images.flatten().int().cpu(), minlength=256).double()
    grey = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = (values * grey).sum() / values.sum()
    return round(float(((values * (grey - mean) ** 2).sum() / values.sum()).sqrt()), 4)


class _Training:
    """One run: network, average, optimiser and batch, all that a step changes."""

    def __init__(self, config: TrainConfig, sizes: NetworkConfig | None, data: FashionData) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(config.device)
        self.cuda = self.device.type == "cuda"
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.images, self.labels = (
            data.train_images.to(self.device),
            data.train_labels.to(self.device),
        )
        self.sigma_data = measure_sigma_data(data.train_images)
        self.net = FashionNetwork(sizes).to(self.device)
        if not self.cuda:  # CUDA's group normalisation works on the plain layout
            self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = deepcopy(self.net).requires_grad_(False)
        self.parameters = list(self.net.parameters())
        # a graph holds the learning rate's address, so there it is a tensor
        rate: Any = torch.tensor(config.lr, device=self.device) if self.cuda else config.lr
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=rate, betas=(0.9, 0.99), fused=self.cuda, capturable=self.cuda
        )
        self.step, self.steps, self.seconds = 0, None if config.minutes else config.steps, 0.0
        self.total = torch.zeros((), device=self.device)  # of the loss since the last report
        self.batch = self.draw()
        self.graph: torch.cuda.CUDAGraph | None = None

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The batch of the next step: x_0 [B, 1, 28, 28], sigma [B], noise, labels [B]."""
        n, generator = self.config.batch, self.generator
        index = torch.randint(len(self.images), (n,), generator=generator, device=self.device)
        hidden = torch.rand(n, generator=generator, device=self.device) < self.config.dropout
        label = torch.where(hidden, NULL_LABEL, self.labels[index])
        z = torch.randn(n, *SHAPE, generator=generator, device=self.device)
        return scale(self.images[index]), draw_sigma(self.config, generator), z, label

    def improve(self) -> None:
        """Take one step of Adam on the current batch."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.cuda, cache_enabled=False
        ):
            loss = denoising_loss(self.net, *self.batch, self.sigma_data)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.total += loss.detach()

    def advance(self) -> None:
        """Draw a batch, take a step, and update the average."""
        for place, new in zip(self.batch, self.draw(), strict=True):
            place.copy_(new)
        for group in self.optimizer.param_groups:
            rate = learning_rate(self.config, self.step, self.steps)
            group["lr"] = group["lr"].fill_(rate) if self.cuda else rate
        if self.graph is not None:
            self.graph.replay()
        else:
            self.optimizer.zero_grad(set_to_none=True)
            self.improve()
        decay = self.config.decay(self.step)
        with torch.no_grad():
            average: Any = list(self.average.parameters())
            torch._foreach_lerp_(average, [*self.parameters], 1 - decay)
        self.step += 1

    def record_graph(self) -> None:
        """Take a few steps, then record `improve` as a CUDA graph.

        If recording fails, training goes on without a graph.
        """
        # as PyTorch's notes ask: warm up on another stream, then record
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.advance()
        torch.cuda.current_stream(self.device).wait_stream(side)
        torch.cuda.synchronize(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.improve()
            self.graph = graph
        except RuntimeError as error:
            log.warning(
                "no CUDA graph (%s): training goes on step by step", str(error).splitlines()[0]
            )
            torch.cuda.synchronize(self.device)
            self.optimizer.zero_grad(set_to_none=True)

    def plan(self, limit: float, step: int, seconds: float) -> None:
        """Set the number of steps that fit into `limit` seconds.

        The speed is measured since `step` at `seconds`.
        """
        if self.seconds >= limit:
            self.steps = self.step
        elif self.step > step:
            fit = self.step + int(
                (limit - self.seconds) * (self.step - step) / (self.seconds - seconds)
            )
            # the plan changes later only if the device has become slower
            if self.steps is None or fit < 0.995 * self.steps:
                self.steps = int(max(self.step + 1, 0.99 * fit))

    def save(self, file: Path) -> None:
        """Write everything that a resumed run needs."""
        tensors: dict[str, Tensor] = {"generator": self.generator.get_state()}
        states = self.optimizer.state_dict()["state"]
        for i, (name, weight) in enumerate(self.net.named_parameters()):
            tensors[f"net.{name}"] = weight
            tensors |= {
                f"adam.{i}.{key}": torch.as_tensor(value) for key, value in states[i].items()
            }
        tensors |= {f"average.{name}": weight for name, weight in self.average.named_parameters()}
        config = {
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            "settings": self.settings(),
        }
        save_tensors(file, tensors, STATE_KIND, config)

    def load(self, file: Path) -> None:
        """Continue a saved run. Raises InputError if it has other settings or is damaged."""
        tensors, config = read_tensors(file, STATE_KIND, REMEDY)
        if config["settings"] != self.settings():
            raise InputError(
                f"{file}: belongs to a run with other settings; use the same ones, or {REMEDY}"
            )
        for name, net in (("net.", self.net), ("average.", self.average)):
            net.load_state_dict(
                {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
            )
        states: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(self.parameters))}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, i, key = name.split(".")
                states[int(i)][key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.step, self.steps, self.seconds = config["step"], config["steps"], config["seconds"]

    def settings(self) -> dict[str, Any]:
        """All settings that determine the weights, as JSON has them."""
        kept = {k: v for k, v in asdict(self.config).items() if k not in ("report", "graph")}
        if self.config.minutes:
            kept.pop("steps")
        return kept | {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.net.config).items()
        }


def train_network(
    config: TrainConfig,
    data: FashionData,
    sizes: NetworkConfig | None = None,
    state: Path | None = None,
) -> Iterator[TrainProgress]:
    """Train, yielding every `report` steps and at the end.

    The same seed, device and version of PyTorch give the same run.

    Args:
        state: file of the run; it is written every minute, and a run in it is continued.
    """
    run = _Training(config, sizes, data)
    if state is not None and state.is_file():
        run.load(state)
    began = time.perf_counter() - run.seconds
    saved, reported = run.seconds, run.step
    pace: tuple[int, float] | None = None  # step and seconds from which the speed is measured
    if run.cuda and config.graph:
        run.record_graph()
    while run.steps is None or run.step < run.steps:
        run.advance()
        if run.step - reported < config.report and run.step != run.steps:
            continue
        loss = float(run.total) / (run.step - reported)  # waits for the device
        run.total.zero_()
        reported, run.seconds = run.step, time.perf_counter() - began
        if not math.isfinite(loss):
            raise RuntimeError(
                f"the loss is {loss} at step {run.step}; train with a smaller learning rate"
            )
        if config.minutes:
            pace = pace or (run.step, run.seconds)  # not from the first step: that one warms up
            run.plan(config.minutes * 60, *pace)
        if state is not None and run.seconds - saved >= 60:
            run.save(state)
            saved = run.seconds
        yield TrainProgress(run.step, run.steps, loss, run.seconds, run.average)
