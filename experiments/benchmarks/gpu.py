"""Learning on one GPU: how fast, in how much memory, and whether it finds what the CPU finds.

    python experiments/benchmarks/gpu.py [--minutes 7.5] [--tiny] [--out FILE.json]

It needs PyTorch, NumPy, safetensors and this package's core. Speed is measured on a network of
CIFAR-10's size (the DDPM++ of EDM, 55.7 M parameters) with random weights. A visit is one sample
on its way through E evaluations, forward and backward. With F floating-point operations per
evaluation of one sample, forward and backward, an iteration of K members with b samples each
cannot take less than

    K b E F / (rate of a bf16 matrix product)

and `of_bf16_peak` is that bound over the measured time. Operations that are done twice, where
activations are recomputed, count once. Sections, in this order:

    ceilings   the rate of a bf16 matrix product and of a copy inside the device's memory
    packing    an iteration of learning with K = 1, 2, 8, 16, … members until memory ends,
               against the bare network
    waits      the calls of an iteration that wait for the device
    dtypes     float32, TF32 and bf16, in both memory formats; the output's error against float64
    compile    eager, every block compiled, the whole network compiled: the first iteration, which
               compiles, and the later ones
    digits     the same schedules learned on the GPU and on the CPU, epoch by epoch and to the end

What is known is written to the file after every step. A section that fails leaves its error there,
and the next one runs. Every section has a share of the time, and looks at the time left before
each measurement.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_bench import (
    FULL,
    GIB,
    PRECISIONS,
    SOLVER,
    TINY,
    Bench,
    Clock,
    evaluation,
    free,
    iteration,
    learning_row,
    once,
    operations,
    random_denoiser,
    seconds,
    session_of,
    settings,
)
from gpu_digits import digits
from torch import Tensor

from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.learning.descent import DescentConfig
from ld3_dist.models.edm.blocks import Block

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


CALLS, OVERHEAD_S = 6, 1.0
"""Calls that measuring a row takes at least, and seconds of its preparation."""


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


def expected(rows: list[dict], K: int, calls: int = CALLS) -> float:
    """Seconds that measuring K members will take, by those that were measured.

    Each kind of row goes on along the line through its last two points, or in proportion to the
    members after only one. A time that does not grow with the members is expected again.
    """
    kinds: dict[tuple, list[tuple[int, float]]] = {}
    for row in rows:
        kind = row["nfe"], row["activations"]
        if "s" in row:
            kinds.setdefault(kind, []).append((row["members"], row["s"]))
        else:  # memory ended: it is not measured again
            kinds.pop(kind, None)
    total = 0.0
    for points in kinds.values():
        (before, first), (last, s) = points[-2] if len(points) > 1 else (0, 0.0), points[-1]
        slope = max(0.0, (s - first) / (last - before))
        total += calls * (s + slope * (K - last)) + OVERHEAD_S
    return total


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


# --- compilation, in processes of its own: it can be ended there, and finds no cache --------------


def compilation(bench: Bench) -> Iterator[dict]:
    """Each way of compiling, until it is done or its time is up."""
    free(bench.device)
    for way in ("blocks", "whole"):
        if bench.clock.left() < 1.5 * CHILD_S:
            return
        share = 0.6 if way == "blocks" else 1.0  # one that hangs must not cost the other
        limit = share * bench.clock.left() - 5
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
    "ceilings": (ceilings, 0.05),
    "packing": (packing, 0.27),
    "waits": (waits, 0.1),
    "dtypes": (dtypes, 0.17),
    "compile": (compilation, 0.78),
    "digits": (digits, 1.0),
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
    parser.add_argument("--minutes", type=float, default=7.5, help="time for all sections")
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
