"""What `compile: true` gains on a CPU: the same schedule learned by a plain and a compiled network.

    python experiments/benchmarks/compiled.py [--models fashion] [--epochs 2] [--out
    results/benchmarks/compiled.json]

Every way is a process of one thread, and the two ways of a model run side by side, each on its own
core. A process learns twice. The first time also measures the hand-made grids, which are kept, and
compiles; what compiling costs is the first time beside that of the plain network. Both ways then
start once more, the compiled one with what the first process left in the cache. Then each draws 300
samples with the schedule, twice. Times are wall times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import ld3_dist as ld3

PAIRS, NFE, SAMPLES = 25, 6, 300


def learn_here(spec: str, compiled: bool, epochs: int) -> dict[str, Any]:
    """The child: seconds of the first and of later work, and the held-out loss."""
    torch.set_num_threads(1)
    model = ld3.load_model(spec, compile=compiled)
    pairs, valid = (
        ld3.teach(ld3.load_model(spec), PAIRS, seed=seed, teacher="unipc-3/10/karras")
        for seed in (0, 1)
    )
    found: dict[str, Any] = {}
    for which in ("first", "later"):
        begun = time.perf_counter()
        schedule = ld3.learn(model, "unipc-3", NFE, pairs, valid, epochs=epochs)
        found[f"learn_{which}_s"] = round(time.perf_counter() - begun, 2)
    found["losses"] = schedule.losses
    for which in ("first", "later"):
        begun = time.perf_counter()
        schedule.sample(model, SAMPLES)
        found[f"sample_{which}_s"] = round(time.perf_counter() - begun, 2)
    return found


def child(spec: str, way: str, epochs: int, cache: str) -> subprocess.Popen[str]:
    """A process that measures one way of one model."""
    command = [sys.executable, __file__, "--child", way, "--models", spec, "--epochs", str(epochs)]
    around = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=around, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process found; raises CalledProcessError if it failed."""
    said = process.communicate()[0]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return json.loads(said.splitlines()[-1])


def measure(spec: str, epochs: int) -> dict[str, Any]:
    """The ways of one model: plain beside compiled, then plain beside compiled from the cache."""
    row: dict[str, Any] = {"model": spec.rsplit(":", 1)[-1]}
    with tempfile.TemporaryDirectory() as cache:
        for compiled in ("compiled", "compiled_from_cache"):
            both = [child(spec, way, epochs, cache) for way in ("plain", "compiled")]
            row["plain"], row[compiled] = map(finished, both)
    row["gain_learning"] = round(
        row["plain"]["learn_later_s"] / row["compiled_from_cache"]["learn_later_s"], 2
    )
    row["gain_sampling"] = round(
        row["plain"]["sample_later_s"] / row["compiled_from_cache"]["sample_later_s"], 2
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="fashion")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=("plain", "compiled"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(learn_here(asked.models, asked.child == "compiled", asked.epochs)))
        return
    rows = []
    for spec in asked.models.split(","):
        rows.append(measure(spec, asked.epochs))
        print(json.dumps(rows[-1], indent=1), flush=True)
    if asked.out:
        command = " ".join(["python", "experiments/benchmarks/compiled.py", *sys.argv[1:]])
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        }
        asked.out.write_text(
            json.dumps({"command": command, "machine": machine, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
