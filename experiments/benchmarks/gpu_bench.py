"""Sizes, timing and the network of the GPU benchmark beside this file."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, pairwise
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.distance import make_distance
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.descent import Descent, DescentConfig
from ld3_dist.core.learning.learn import Pairs, Problem
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.models.edm.unet import SongUNet, UNetConfig

SOLVER, L2, GIB = "unipc-3", make_distance("l2"), 2**30
PRECISIONS = {
    "float32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
}
"""By name: the network's dtype, and whether float32 products may use TF32."""


@dataclass(frozen=True)
class Size:
    """How large everything is.

    unet: the network.  side: of the matrices.  copied: bytes.  members, nfes: of packing.
    dtype_members, compile_members: K of these sections.  repeat_s: seconds a measurement repeats.
    epochs, early, pairs, fresh: of the digits: epochs in all, epochs compared with float64, pairs
    that each member learns from, fresh pairs.
    backend: of torch.compile.
    """

    unet: UNetConfig
    side: int
    copied: int
    members: tuple[int, ...]
    nfes: tuple[int, ...]
    dtype_members: tuple[int, ...]
    compile_members: tuple[int, ...]
    repeat_s: float
    epochs: int
    early: int
    pairs: int
    fresh: int
    backend: str


FULL = Size(
    UNetConfig(32, 3, 3, augment_dim=9, channel_mult=(2, 2, 2)),
    side=8192, copied=2 * GIB, members=(1, 2, 8, 16, 32, 64, 128, 256), nfes=(4, 10),
    dtype_members=(4, 1), compile_members=(4,), repeat_s=0.7,
    epochs=DescentConfig().epochs, early=10, pairs=50, fresh=2_000, backend="inductor",
)  # fmt: skip
TINY = Size(
    UNetConfig(8, 3, 3, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(8,)),
    side=128, copied=2**20, members=(1, 2), nfes=(2,),
    dtype_members=(1,), compile_members=(1,), repeat_s=0.02,
    epochs=1, early=1, pairs=10, fresh=20, backend="aot_eager",
)  # fmt: skip


class Clock:
    """Time that is left, for a section and for all."""

    def __init__(self, minutes: float) -> None:
        self.began = time.monotonic()
        self.end = self.limit = self.began + 60 * minutes

    def section(self, share: float) -> None:
        """The next section may take this share of what is left."""
        now = time.monotonic()
        self.limit = now + share * (self.end - now)

    def left(self) -> float:
        """Seconds left to the present section."""
        return self.limit - time.monotonic()


@dataclass(frozen=True)
class Bench:
    """Where, how large, until when."""

    device: torch.device
    size: Size
    clock: Clock
    found: dict
    """The sections that are done."""

    def peak(self) -> float:
        """The measured rate of a bf16 matrix product; not a number where that section failed."""
        return self.found.get("ceilings", {}).get("bf16_product_flops", math.nan)


# --- timing ---------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, from an empty queue to an empty queue."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def seconds(run: Callable[[], object], device: torch.device, repeat_s: float) -> dict:
    """Median and spread of calls that do not wait for each other, after two that do not count."""
    run()
    count = int(min(max(repeat_s / once(run, device), 3), 25))
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            run()
            mark.record()
        synchronize(device)
        taken = [a.elapsed_time(b) / 1000 for a, b in pairwise(marks)]
    else:
        taken = [once(run, device) for _ in range(count)]
    median = statistics.median(taken)
    return {"s": median, "spread": (max(taken) - min(taken)) / median, "calls": count}


def free(device: torch.device) -> None:
    """Give unused memory back, and forget the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0


@contextmanager
def settings(tf32: bool, benchmark: bool = False) -> Iterator[None]:
    """TF32 in float32 products, and cuDNN's own search for algorithms, for a while."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = tf32, tf32, benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


# --- the network, and an iteration of learning on it ----------------------------------------------


@cache
def random_network(config: UNetConfig) -> SongUNet:
    """The U-Net with every weight random, biases too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SongUNet(config)
        for p in net.parameters():
            p.data.add_(0.02 * torch.randn_like(p))
    return net


def random_denoiser(bench: Bench, dtype: torch.dtype, channels_last: bool) -> NetworkDenoiser:
    """The U-Net in EDM's preconditioning, the same random weights for every dtype."""
    net = deepcopy(random_network(bench.size.unet)).to(bench.device, dtype)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    c = bench.size.unet
    shape = (c.in_channels, c.img_resolution, c.img_resolution)
    return NetworkDenoiser(net, EDM(), shape, prediction="edm", dtype=dtype)


def session_of(
    bench: Bench,
    denoiser: NetworkDenoiser,
    K: int,
    nfe: int,
    checkpointing: str,
) -> Descent:
    """Learning with the default settings; the pairs are random, like the network."""
    solver = make_solver(SOLVER)
    knots = discretize(denoiser.noise, solver.steps(nfe), "log_snr").repeat(K, 1)
    noise = draw_noise(0, range(50), denoiser.shape).to(bench.device)
    pairs = Pairs(noise, 0.5 * noise.flip(0))
    seeds = list(range(K))
    problem = Problem(denoiser, solver, knots, pairs, pairs, L2, nfe=nfe, seeds=seeds)
    return Descent(problem, DescentConfig(checkpointing=checkpointing))


def iteration(session: Descent) -> Callable[[], object]:
    """A call that makes one iteration of all members."""
    batches, k = cycle([*session.batches()]), session.members()
    return lambda: session.step(next(batches)[k], k, 1.0)


def evaluation(bench: Bench, denoiser: NetworkDenoiser, rows: int) -> Callable[[], object]:
    """A call that evaluates the bare network once, forward and backward to input and time."""
    scale = denoiser.noise.prior_scale
    x = scale * torch.randn(rows, *denoiser.shape, device=bench.device)
    t = torch.linspace(0.1, 40, rows, device=bench.device)

    def run() -> None:
        y, at = x.clone().requires_grad_(), t.clone().requires_grad_()
        denoiser(y, at).sum().backward()

    return run


def operations(bench: Bench) -> float:
    """Floating-point operations of one evaluation of one sample, forward and backward.

    They are counted on the CPU, with attention written out: not every fused kernel is counted.
    """
    there = replace(bench, device=torch.device("cpu"))
    run = evaluation(there, random_denoiser(there, torch.float32, False), 1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def learning_row(bench: Bench, denoiser: NetworkDenoiser, K: int, nfe: int, kind: str) -> dict:
    """Time and memory of an iteration; without a time where memory ended."""
    free(bench.device)
    row = {"members": K, "nfe": nfe, "activations": {"never": "kept", "always": "recomputed"}[kind]}
    session = session_of(bench, denoiser, K, nfe, kind)
    run, samples = iteration(session), K * DescentConfig().batch
    run()
    if session.objective.most < samples:  # learning would go on with smaller batches
        return row | {"out_of_memory": True}
    taken = seconds(run, bench.device, bench.size.repeat_s)
    return row | taken | {"visits_per_s": samples / taken["s"], "peak_gib": peak_gib(bench.device)}
