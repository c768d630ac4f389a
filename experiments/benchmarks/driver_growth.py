"""Growth of the driver: its rate, CPU and memory over a sweep of many tiny trials.

    python experiments/benchmarks/driver_growth.py after --trials 10000 [--hollow] [--out FILE]

The trials are those of one cell: 250 grid points in as many rounds as it takes, one member, one
epoch of eight pairs. Every `trials / 40` finished trials, and once more at the end, the driver's
process writes down the wall time (s) since the first trial was done, its own CPU time (s, all its
threads) and its resident memory (MB). The curve goes to FILE (results/benchmarks/cluster.json)
under growth.<name>, together with three figures that follow from it:

rate           finished trials per second of wall time, over all but the first twentieth
driver_cpu_ms  CPU of the driver per trial; 1000 / driver_cpu_ms is the rate that the driver could
               sustain with workers enough
memory_kb      growth of the resident memory per trial, a least-squares line over the same part

--hollow: workers answer a trial at once, with a made-up outcome, and learn and write nothing. All
else is as it is: Ray, Tune, the searcher, the events. So the figures are the driver's own, where
the cores would otherwise be taken by the trials.

The trials run on the same cores as the driver, and so does whatever else the machine does (load:
its load average of a minute at both ends), so that the rate here is a lower bound."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

POINTS = 250
MARKS = 40

DRIVER = """
import json, os, sys, time
from ld3_dist.cluster.sweep import Sweep
from ld3_dist.experiment import load_experiment
from ld3_dist.store.opening import open_storage

def look(done):
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    print(json.dumps([done, time.time(), time.process_time(), memory]), file=marks, flush=True)

def hollow(config, plan, storage, threads, every):
    # the worker's function, with trials that take no time
    from ld3_dist.tasks.trial import Outcome

    def nothing(key):
        return Outcome(key, -1.0, (0.5,), "ok")

    try:
        from ld3_dist.cluster.search import worker

        worker.run_one = lambda given, plan, storage, reporter: nothing(given["key"])
        worker.trainable(config, plan, storage, threads, every)
    except ImportError:  # before there were turns
        from ld3_dist.cluster.search import tune_run

        tune_run.run_trial = lambda plan, spec, *rest, **more: nothing(spec.key)
        tune_run.trainable(config, plan, storage, threads, every)

if sys.argv[5] == "hollow":
    import ld3_dist.cluster.search.tune_run

    ld3_dist.cluster.search.tune_run.trainable = hollow

every, marks, told = int(sys.argv[3]), open(sys.argv[4], "w"), -1
experiment, place = load_experiment(sys.argv[1]), open_storage(sys.argv[2])
for event in Sweep(experiment, place, stages=("teach", "search")).run():
    if event.stage == "search" and event.done // every > told and event.done:
        told = event.done // every
        look(event.done)
    if event.message:
        print(event.message[:300], file=sys.stderr, flush=True)
"""


def experiment(trials: int) -> dict[str, Any]:
    """An experiment of tiny trials, POINTS of them at once."""
    values = [round(0.001 * i, 3) for i in range(POINTS)]
    return {
        "name": "growth",
        "models": ["analytic:mixture-2d"],
        "solvers": ["ddim"],
        "nfe": [3],
        "pairs": {"train": 8, "valid": 8},
        "learn": {"epochs": 1, "batch": 8},
        "evaluate": {"samples": 0},
        "search": {
            "grid": {"gamma": values},
            "optuna": {"lr": {"low": 0.03, "high": 0.3, "log": True}},
            "rounds": max(trials // POINTS, 1),
            "sampler": "random",
            "members": {"seeds": 1, "starts": ["log_snr"]},
        },
        "baselines": ["karras"],
        "resources": {"batch": 50, "concurrent_trials": 2},
    }


def follow(marks: list[list[float]]) -> dict[str, Any]:
    """The figures of a curve."""
    done, wall, cpu, memory = np.array(marks).T
    steady = done >= done[-1] / 20
    trials = done[steady][-1] - done[steady][0]
    seconds = wall[steady][-1] - wall[steady][0]
    slope = np.polyfit(done[steady], memory[steady], 1)[0]
    return {
        "trials": int(done[-1]),
        "rate": round(trials / seconds, 2),
        "driver_cpu_ms": round(1000 * (cpu[steady][-1] - cpu[steady][0]) / trials, 2),
        "memory_kb": round(1000 * slope, 2),
    }


def curve(marks: list[list[float]]) -> dict[str, list[float]]:
    """The marks as columns, times from the first of them on."""
    done, wall, cpu, memory = np.array(marks).T
    return {
        "done": [int(n) for n in done],
        "wall_s": [round(t, 1) for t in wall - wall[0]],
        "cpu_s": [round(t, 2) for t in cpu - cpu[0]],
        "memory_mb": [round(m, 1) for m in memory],
    }


def main() -> None:
    """Run the sweep in a process of its own; an interrupted one leaves what it has measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the entry: before, after")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--hollow", action="store_true", help="trials that do nothing")
    parser.add_argument("--seconds", type=float, help="end the sweep after so long")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/cluster.json"))
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        import yaml

        file, marks = Path(folder, "growth.yaml"), Path(folder, "marks")
        file.write_text(yaml.safe_dump(experiment(given.trials)))
        every = max(given.trials // MARKS, 1)
        command = [sys.executable, "-c", DRIVER, str(file), str(Path(folder, "out")), str(every)]
        driver = subprocess.Popen([*command, str(marks), "hollow" if given.hollow else "real"])
        try:
            driver.wait(given.seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            driver.terminate()
            driver.wait()
        found = [json.loads(line) for line in marks.read_text().splitlines()]
    import ray
    import torch

    entry = follow(found) | {
        "curve": curve(found),
        "device": f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU",
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "torch": torch.__version__,
        "ray": ray.__version__,
    }
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    kept["growth"] = kept.get("growth", {}) | {given.name: entry}
    given.out.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
