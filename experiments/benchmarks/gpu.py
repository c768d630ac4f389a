"""Learning on one GPU: how fast, in how much memory, and whether it finds what the CPU finds.

    python experiments/benchmarks/gpu.py [--minutes 8] [--tiny] [--out results/benchmarks/gpu.json]

It needs PyTorch, NumPy, safetensors and this package's core. Speed is measured on a network of
CIFAR-10's size (the DDPM++ of EDM, 55.7 M parameters) with random weights. A visit is one sample
on its way through E evaluations, forward and backward. With F floating-point operations per
evaluation of one sample, forward and backward, an iteration of K members with b samples each
cannot take less than

    K b E F / (rate of a bf16 matrix product)

and `of_bf16_peak` is that bound over the measured time. Operations that are done twice, where
activations are recomputed, count once. Sections, in this order:

    ceilings   the rate of a bf16 matrix product and of a copy inside the device's memory
    packing    an iteration of learning with K = 1, 2, 4, … members until memory ends, against
               the bare network
    waits      the calls of an iteration that wait for the device
    dtypes     float32, TF32 and bf16, in both memory formats; the output's error against float64
    digits     the same schedules learned on the GPU and on the CPU, epoch by epoch and to the end
    compile    eager, every block compiled, the whole network compiled: the first iteration, which
               compiles, and the later ones

What is known is written to the file after every step. A section that fails leaves its error there,
and the next one runs. Every section has a share of the time, and looks at the time left before
each measurement.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import torch
from pairs import generate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.distance import make_distance
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.descent import Descent, DescentConfig
from ld3_dist.core.learning.learn import Pairs, Problem, Progress, learn
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.models import Model, ModelOptions, open_model
from ld3_dist.models.edm.blocks import Block
from ld3_dist.models.edm.unet import SongUNet, UNetConfig

SOLVER, L2, GIB = "unipc-3", make_distance("l2"), 2**30
TEACHER_NFE = 20
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
    side=8192, copied=2 * GIB, members=(1, 2, 4, 8, 16, 32, 64, 128), nfes=(4, 10),
    dtype_members=(4, 1), compile_members=(4, 1), repeat_s=0.7,
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


# --- sections -------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> Iterator[dict]:
    """What the card can do, on random data."""
    n, device = bench.size.side, bench.device
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = seconds(lambda: torch.mm(a, b), device, bench.size.repeat_s)
    yield {"bf16_product_flops": 2 * n**3 / product["s"], "product": product}
    source = torch.randn(bench.size.copied // 4, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device, bench.size.repeat_s)
    yield {"copy_bytes_per_s": 2 * bench.size.copied / copy["s"], "copy": copy}


def packing(bench: Bench) -> Iterator[dict]:
    """K members in one call, activations kept and recomputed, until memory ends."""
    formats = {}
    for channels_last in (False, True):
        denoiser = random_denoiser(bench, torch.bfloat16, channels_last)
        run = evaluation(bench, denoiser, 8 * DescentConfig().batch)
        formats[channels_last] = seconds(run, bench.device, bench.size.repeat_s)
        free(bench.device)
    best = min(formats, key=lambda layout: formats[layout]["s"])
    denoiser = random_denoiser(bench, torch.bfloat16, best)
    work = operations(bench)
    yield {
        "parameters": sum(p.numel() for p in denoiser.net.parameters()), "solver": SOLVER,
        "batch": DescentConfig().batch, "dtype": "bfloat16", "channels_last": best,
        "evaluation_of_80_s": {"contiguous": formats[False], "channels_last": formats[True]},
        "flops_of_an_evaluation": work, "rows": (rows := []),
    }  # fmt: skip
    ended: set[tuple[int, str]] = set()
    for K in bench.size.members:
        if len(ended) == 2 * len(bench.size.nfes) or bench.clock.left() < expected(rows, K):
            break
        fresh = []
        for nfe in bench.size.nfes:
            for kind in ("never", "always"):
                if (nfe, kind) not in ended:
                    row = learning_row(bench, denoiser, K, nfe, kind)
                    fresh.append(row)
                    ended |= set() if "s" in row else {(nfe, kind)}
        timed = [row for row in fresh if "s" in row]
        rows += fresh
        if timed:
            free(bench.device)
            run = evaluation(bench, denoiser, K * DescentConfig().batch)
            bare = seconds(run, bench.device, bench.size.repeat_s)["s"]
            for row in timed:
                row["over_bare"] = row["s"] / (row["nfe"] * bare)
                row["of_bf16_peak"] = work * row["nfe"] * row["visits_per_s"] / bench.peak()
        yield {"rows": rows}


def expected(rows: list[dict], K: int) -> float:
    """Seconds that K members will take: five calls, each twice as long as with half of them."""
    return sum(2 * row["s"] * 5 + 1 for row in rows if "s" in row and 2 * row["members"] == K)


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


def waits(bench: Bench) -> Iterator[dict]:
    """The calls in one iteration that wait for the device, by the line that makes them."""
    if bench.device.type != "cuda":
        return
    denoiser = random_denoiser(bench, torch.bfloat16, False)
    run = iteration(session_of(bench, denoiser, 1, bench.size.nfes[0], "never"))
    run()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchron" in str(w.message)]
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in found]
    yield {place: places.count(place) for place in sorted(set(places))}


def dtypes(bench: Bench) -> Iterator[dict]:
    """Precision and memory format: an iteration, the bare network, the error of its output."""
    nfe, rows = bench.size.nfes[0], []
    best = bench.found.get("packing", {}).get("channels_last", False)
    exact = raw_output(bench, random_denoiser(bench, torch.float64, False))
    yield {"nfe": nfe, "rows": rows}
    for channels_last, benchmark in ((best, False), (not best, False), (best, True)):
        for K in bench.size.dtype_members:
            for name, (dtype, tf32) in PRECISIONS.items():
                if bench.clock.left() < 5 * bench.size.repeat_s:
                    return
                denoiser = random_denoiser(bench, dtype, channels_last)
                with settings(tf32, benchmark):
                    row = learning_row(bench, denoiser, K, nfe, "never")
                    run = evaluation(bench, denoiser, K * DescentConfig().batch)
                    row["bare_s"] = seconds(run, bench.device, bench.size.repeat_s / 2)["s"]
                    out = raw_output(bench, denoiser)
                    row["error"] = float((out - exact).norm() / exact.norm())
                row |= {"dtype": name, "channels_last": channels_last, "cudnn_benchmark": benchmark}
                rows.append(row)
                yield {"rows": rows}


@torch.no_grad()
def raw_output(bench: Bench, denoiser: NetworkDenoiser) -> Tensor:
    """The network's output on eight random inputs, always the same, as float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, *denoiser.shape, generator=generator).to(bench.device, denoiser.dtype)
    time = torch.linspace(-1.5, 1.1, 8, dtype=torch.float64).to(bench.device)
    return denoiser.net(x, time if x.dtype == torch.float64 else time.float()).double()


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
        """As in pairs.py, on the device."""
        teacher, noise = make_solver("unipc-3"), self.opened.denoiser.noise
        knots = discretize(noise, TEACHER_NFE, "karras")
        x = draw_noise(0, range(start, stop), self.opened.denoiser.shape)
        begin = Pairs(x, x, self.opened.draw_condition(0, range(start, stop))).to(self.device)
        made = generate(self.opened, teacher.tableau(noise, teacher.coupled(noise, knots)), begin)
        return Pairs(begin.noise, made, begin.condition)

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
        tables = (run[-1].tableau.take(k) for k in range(3))
        made = (generate(self.opened, table, fresh) for table in tables)
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


# --- compilation, in processes of its own: it can be ended there, and finds no cache --------------


def compilation(bench: Bench) -> Iterator[dict]:
    """Each way of compiling, until it is done or its time is up."""
    free(bench.device)
    for way in ("blocks", "whole"):
        if bench.clock.left() < 1.5 * CHILD_S:
            return
        limit = bench.clock.left() - 5
        with tempfile.TemporaryDirectory() as cache:
            yield {way: child(way, bench.size is TINY, limit, cache)}


CHILD_S = 15
"""Seconds that a child process takes before it compiles anything, at most."""


def child(way: str, tiny: bool, limit: float, cache: str) -> dict:
    """What a child process printed; with `stopped_after_s` where its time was up."""
    command = [sys.executable, __file__, "--compile", way] + ["--tiny"] * tiny
    where = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=os.environ | where, start_new_session=True
        )  # a session of its own: compilers that it starts end with it
        found: dict = {"rows": []}
        try:
            code = process.wait(limit)
            found |= {} if code == 0 else {"exit_code": code}
        except subprocess.TimeoutExpired:
            found["stopped_after_s"] = limit
        finally:
            if process.poll() is None or "stopped_after_s" in found:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        err.seek(0)
        found["rows"] = [json.loads(line) for line in out if line.startswith("{")]
        if "exit_code" in found:
            found["error"] = err.read()[-2000:]
        return found


def compile_here(bench: Bench, way: str) -> None:
    """The child: a line for eager, for the first compiled iteration and for the later ones."""
    denoiser = random_denoiser(bench, torch.bfloat16, channels_last=False)
    learning = lambda K: iteration(session_of(bench, denoiser, K, bench.size.nfes[0], "never"))
    runs = {K: learning(K) for K in bench.size.compile_members}
    for K, run in runs.items():
        emit(members=K, what="eager", **seconds(run, bench.device, bench.size.repeat_s))
    torch._dynamo.config.recompile_limit = 64  # a version per shape of block
    options = {"dynamic": False, "backend": bench.size.backend}
    if way == "blocks":
        Block.forward = torch.compile(Block.forward, **options)  # type: ignore[method-assign]
    else:
        denoiser.net.compile(**options)
    for K, run in runs.items():
        emit(members=K, what="first", s=once(run, bench.device))
        emit(members=K, what="later", **seconds(run, bench.device, bench.size.repeat_s))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    emit(
        what="graphs",
        graphs=graphs,
        breaks=sum(torch._dynamo.utils.counters["graph_break"].values()),
    )


def emit(**line: object) -> None:
    print(json.dumps(line), flush=True)


# --- the whole ------------------------------------------------------------------------------------

SECTIONS = {
    "ceilings": (ceilings, 0.2),
    "packing": (packing, 0.36),
    "waits": (waits, 0.1),
    "dtypes": (dtypes, 0.25),
    "digits": (digits, 0.5),
    "compile": (compilation, 1.0),
}
"""By name: what runs, and its share of the time that is left."""


def run_sections(bench: Bench, write: Callable[[], None]) -> None:
    """All sections; whatever one of them raises is recorded."""
    for name, (section, share) in SECTIONS.items():
        bench.clock.section(share)
        began = time.monotonic()
        part = bench.found[name] = {}
        try:
            for more in section(bench):
                part |= more
                write()
        except Exception as error:  # noqa: BLE001, the next section may still work
            traceback.print_exc()
            part["error"] = f"{type(error).__name__}: {error}"[:2000]
        part["seconds"] = time.monotonic() - began
        free(bench.device)
        write()
        print(f"{name}: {part['seconds']:.0f} s", flush=True)


def machine(device: torch.device) -> dict:
    """What the numbers were measured on."""
    found: dict = {"device": platform.machine(), "driver": None, "cuda": torch.version.cuda}
    if device.type == "cuda":
        props = torch.cuda.get_device_properties(device)
        found |= {"device": props.name, "memory_gib": props.total_memory / GIB}
        found["multiprocessors"] = props.multi_processor_count
        version = Path("/proc/driver/nvidia/version")
        try:
            command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            found["driver"] = done.stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            found["driver"] = version.read_text().splitlines()[0] if version.is_file() else None
    return found | {
        "torch": torch.__version__, "python": platform.python_version(), "cpus": os.cpu_count(),
        "cudnn": torch.backends.cudnn.version(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def table(found: dict) -> Iterator[str]:
    """The short of it."""
    top = found.get("ceilings", {})
    if "copy_bytes_per_s" in top:
        product, copy = top["bf16_product_flops"] / 1e12, top["copy_bytes_per_s"] / 1e12
        yield f"bf16 product {product:.0f} TFLOP/s, copy {copy:.2f} TB/s"
    yield "   K  NFE  activations       ms  visits/s  /bare   peak    GiB"
    for r in found.get("packing", {}).get("rows", []):
        head = f"{r['members']:4} {r['nfe']:4} {r['activations']:>12}"
        if "s" not in r:
            yield f"{head} memory ends"
            continue
        yield (
            f"{head} {1000 * r['s']:8.1f} {r['visits_per_s']:9.1f} "
            f"{r.get('over_bare', math.nan):6.2f} {r.get('of_bf16_peak', math.nan):6.1%} "
            f"{r['peak_gib']:6.2f}"
        )
    yield f"waits: {found.get('waits')}"
    for r in found.get("dtypes", {}).get("rows", []):
        layout = "channels_last" if r["channels_last"] else "contiguous"
        search = ", cuDNN searches" if r["cudnn_benchmark"] else ""
        took = f"{1000 * r['s']:.1f} ms" if "s" in r else "memory ends"
        bare = f"bare {1000 * r['bare_s']:.1f} ms"
        head = f"K={r['members']} {r['dtype']}, {layout}{search}"
        yield f"{head}: {took}, {bare}, error {r['error']:.1e}"
    made = found.get("digits", {})
    for where in ("gpu", "cpu", "tf32"):
        if where in made:
            r = made[where]
            numbers = [" ".join(f"{v:.6f}" for v in r[what]) for what in ("held_out", "fresh")]
            yield f"digits, {where}: {r['wall_s']:.1f} s, held out {numbers[0]}, fresh {numbers[1]}"
    for pair in ("gpu_and_cpu", "gpu_and_float64", "cpu_and_float64", "tf32_and_cpu"):
        for gap in made.get(pair, [])[1:11:3]:
            numbers = [f"{n} {gap[n]:.1e}" for n in gap if n != "epoch"]
            yield f"{pair}, epoch {gap['epoch']}: {', '.join(numbers)}"
    for way in ("blocks", "whole"):
        ran = found.get("compile", {}).get(way, {})
        for r in ran.get("rows", []):
            if "s" in r:
                yield f"compile {way}, K={r['members']}, {r['what']}: {r['s']:.3f} s"
        if "stopped_after_s" in ran:
            yield f"compile {way}: stopped after {ran['stopped_after_s']:.0f} s"
    for name, part in found.items():
        if "error" in part:
            yield f"{name}: {part['error'].splitlines()[0]}"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all sections")
    parser.add_argument("--tiny", action="store_true", help="a tiny network: does the script run?")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/gpu.json"))
    parser.add_argument("--compile", choices=("blocks", "whole"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict = {}
    bench = Bench(device, TINY if asked.tiny else FULL, Clock(asked.minutes), found)
    if asked.compile:
        compile_here(bench, asked.compile)
        return
    whole = {
        "machine": machine(device),
        "minutes": asked.minutes,
        "size": asdict(bench.size),
        "sections": found,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        part = asked.out.with_name(f".{asked.out.name}.part")
        part.write_text(json.dumps(whole, indent=1) + "\n")
        os.replace(part, asked.out)

    write()
    run_sections(bench, write)
    print("\n".join([f"{whole['machine']['device']}, torch {torch.__version__}", *table(found)]))


if __name__ == "__main__":
    main()
