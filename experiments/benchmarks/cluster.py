"""What the cluster costs: throughput of teachers, overhead of a trial, a thousand trials, idle
workers.

    python experiments/benchmarks/cluster.py teachers | warm | thousand | idle | reports [--out
    FILE]

teachers   pairs a second of one actor against a bare loop without Ray on one core, and of two
           actors against one; and of two bare loops at once against one, which is what the machine
           itself gives (medians over rounds)
warm       seconds that a trial costs beyond its own work, with warm workers, and the share of
           Tune's start and end
thousand   1,000 trials of next to no work: peak memory of the driver, driver seconds and wall
           seconds per trial
idle       share of the workers' time without a trial, between the first trial's start and the last
           one's end, of a sweep of 24 trials in 6 cells
reports    CPU seconds of the driver for one report of a running trial

Each writes its own entry into the file and leaves the others. The times of trials are those in the
logs of the workers; load_before and load_after are the machine's load average of a minute: what
other work took part of the cores."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

WORKERS = 2
SHARD = 50
"""Pairs of a shard."""


def digits(train: int, shard: int) -> dict[str, Any]:
    return {
        "name": "cluster",
        "models": ["digits"],
        "solvers": ["ddim"],
        "nfe": [4],
        "pairs": {"train": train, "valid": 50},
        "search": {"members": {"seeds": 1}},
        "evaluate": {"samples": 0},
        "resources": {"shard": shard, "batch": 50},
    }


def analytic(
    rounds: int, epochs: int, solvers: list[str], nfe: list[int], train: int = 8
) -> dict[str, Any]:
    """Two values of gamma in every round."""
    return {
        "name": "cluster",
        "models": ["analytic:mixture-2d"],
        "solvers": solvers,
        "nfe": nfe,
        "pairs": {"train": train, "valid": 8},
        "learn": {"epochs": epochs, "batch": 4},
        "evaluate": {"samples": 0},
        "search": {
            "grid": {"gamma": [0, 0.01]},
            "optuna": {"lr": {"low": 0.03, "high": 0.3, "log": True}},
            "rounds": rounds,
            "sampler": "random",
            "members": {"seeds": 1, "starts": ["log_snr"]},
        },
        "baselines": ["karras"],
        "resources": {"batch": 50, "concurrent_trials": WORKERS},
    }


def lines(out: Path, role: str) -> list[dict[str, Any]]:
    """The log of a sweep's driver or workers, in order of time."""
    files = (out / "logs").glob(f"*-{role}-*.jsonl")
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return sorted(found, key=lambda line: line["time"])


def spans(out: Path, stage: str) -> list[tuple[float, float]]:
    """Start and end (seconds) of every task of a stage that went well."""
    made = []
    for line in lines(out, "worker"):
        if line["stage"] == stage and line["event"] == "end":
            end = datetime.fromisoformat(line["time"]).timestamp()
            made.append((end - line["seconds"], end))
    return sorted(made)


def sweep(
    experiment: dict[str, Any], folder: Path, before: str = ""
) -> tuple[Path, dict[str, float]]:
    """Run a sweep in a process of its own, after the line `before`.

    Its folder, and what the driver took: wall, CPU (s) and peak memory (MB).
    """
    import yaml

    file, out = folder / "cluster.yaml", folder / "out"
    file.write_text(yaml.safe_dump(experiment))
    code = (
        "import json, resource, sys\n"
        "from ld3_dist.cluster.sweep import Sweep\n"
        "from ld3_dist.experiment import load_experiment\n"
        "from ld3_dist.store.opening import open_storage\n"
        f"{before}\n"
        "run = Sweep(load_experiment(sys.argv[1]), open_storage(sys.argv[2]), stages=('teach', "
        "'search'))\n"
        "for event in run.run(): pass\n"
        "use = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(json.dumps([run.failures, use.ru_maxrss, use.ru_utime + use.ru_stime]))\n"
    )
    clock = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(file), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - clock
    assert done.returncode == 0, done.stderr[-2000:]
    failures, memory, cpu = json.loads(done.stdout.splitlines()[-1])
    assert failures == 0
    return out, {"wall_s": wall, "driver_cpu_s": cpu, "driver_peak_mb": memory / 1024}


def loop(folder: str, shards: int, together: Any, results: Any) -> None:
    """The same function an actor calls, `make_shard`, again and again in a process of its own, on
    one thread.
    """
    import torch

    from ld3_dist.store.opening import open_storage
    from ld3_dist.tasks.teach import make_shard

    torch.set_num_threads(1)
    plan, storage = teacher_plan(), open_storage(folder)
    (model,) = plan.experiment.models
    make_shard(plan, model, storage, 0, SHARD)
    together.wait()
    clock = time.perf_counter()
    for start in range(SHARD, (shards + 1) * SHARD, SHARD):
        make_shard(plan, model, storage, start, start + SHARD)
    results.put(shards * SHARD / (time.perf_counter() - clock))


def teacher_plan() -> Any:
    from ld3_dist.experiment import parse_experiment
    from ld3_dist.tasks.planning import make_plan

    return make_plan(parse_experiment(digits(1000, SHARD)))


def bare(folder: Path, shards: int, processes: int) -> float:
    """Pairs a second of this many loops without Ray, at once, each with so many shards."""
    spawn = multiprocessing.get_context("spawn")
    together, results = spawn.Barrier(processes), spawn.Queue()
    arguments = [(str(folder / f"{i}"), shards, together, results) for i in range(processes)]
    started = [spawn.Process(target=loop, args=a) for a in arguments]
    for process in started:
        process.start()
    rates = [results.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    return sum(rates)


def pooled(folder: Path, shards: int, actors: int) -> float:
    """Pairs a second of this many actors, with so many shards for each, once all of them have made
    one.
    """
    from ld3_dist.cluster.ray.pool import Done, Pool, Task
    from ld3_dist.store.opening import open_storage
    from ld3_dist.tasks.teach import make_shard

    plan, storage = teacher_plan(), open_storage(folder)
    (model,) = plan.experiment.models

    def task(name: str, start: int) -> Task:
        return Task("teach", name, make_shard, (plan, model, storage, start, start + SHARD))

    def work(tasks: list[Task]) -> None:
        workers.add(tasks)
        assert all(isinstance(outcome, Done) for outcome in workers.run())

    with Pool(actors, 1, 0, 0, 600) as workers:
        while sum(slot.place is not None for slot in workers.slots) < actors:
            work([task(f"start{time.monotonic()}-{i}", 0) for i in range(2 * actors)])
        work([task(f"warm{i}", 0) for i in range(2 * actors)])
        measured = [task(f"{i}", i * SHARD) for i in range(1, actors * shards + 1)]
        clock = time.perf_counter()
        work(measured)
        return len(measured) * SHARD / (time.perf_counter() - clock)


def teachers(folder: Path, rounds: int = 5, shards: int = 48) -> dict[str, Any]:
    """One after the other within a round, so that what else the machine does touches all four
    alike.
    """
    from ld3_dist.cluster.ray.connect import connect

    connect(None)
    found = [
        {f"bare_{n}": bare(folder / f"bare-{i}-{n}", shards, n) for n in (1, 2)}
        | {f"actors_{n}": pooled(folder / f"actors-{i}-{n}", shards, n) for n in (1, 2)}
        for i in range(rounds)
    ]

    def middle(above: str, below: str) -> float:
        return round(statistics.median(rates[above] / rates[below] for rates in found), 3)

    return {"model": "digits", "teacher": "unipc-3/20", "shards_each": shards, "shard": SHARD} | {
        "pairs_per_second": [
            {key: round(rate, 1) for key, rate in rates.items()} for rates in found
        ],
        "one_actor_over_bare": middle("actors_1", "bare_1"),
        "two_actors_over_one": middle("actors_2", "actors_1"),
        "two_bare_over_one": middle("bare_2", "bare_1"),
        "two_actors_over_two_bare": middle("actors_2", "bare_2"),
    }


def gaps(out: Path) -> dict[str, Any]:
    """Where the time of the WORKERS went in the search, from the first trial's start to the last
    one's end.
    """
    trials = spans(out, "search")
    length = max(end for _, end in trials) - trials[0][0]
    busy = sum(end - start for start, end in trials)
    return {
        "trials": len(trials), "search_s": round(length, 2), "in_trials_s": round(busy, 2),
        "overhead_per_trial_s": round((WORKERS * length - busy) / len(trials), 4),
        "idle_share": round(1 - busy / (WORKERS * length), 4),
    }  # fmt: skip


def warm(folder: Path) -> dict[str, Any]:
    """40 short trials: the workers' time between trials, start-up of Tune and of the workers left
    out.
    """
    out, used = sweep(analytic(10, 5, ["ddim", "ipndm-2"], [3]), folder)
    return gaps(out) | {key: round(value, 1) for key, value in used.items()}


def thousand(folder: Path, trials: int = 1000) -> dict[str, Any]:
    out, used = sweep(analytic(trials // 2, 1, ["ddim"], [3]), folder)
    found = gaps(out) | {key: round(value, 1) for key, value in used.items()}
    files = [path for path in out.rglob("*") if path.is_file()]
    found |= {
        "files": len(files),
        "output_mb": round(sum(path.stat().st_size for path in files) / 1e6, 2),
    }
    search = next(
        line["seconds"]
        for line in lines(out, "driver")
        if line["stage"] == "sweep" and line["event"] == "end"
    )
    return found | {"sweep_s": search, "wall_per_trial_s": round(search / found["trials"], 4)}


def idle(folder: Path) -> dict[str, Any]:
    """24 trials of 6 cells, a few seconds each."""
    experiment = analytic(2, 60, ["ddim", "ipndm-2", "dpmpp-2"], [3, 4], train=100)
    out, used = sweep(experiment, folder)
    return gaps(out) | {key: round(value, 1) for key, value in used.items()}


def reports(folder: Path, epochs: int = 300) -> dict[str, Any]:
    """Two trials that report every epoch against two that report none: what a report costs the
    driver.
    """
    used = {}
    for name, rate in (
        ("none", "s.REPORT_EVERY = 1e9"),
        ("all", "s.REPORT_EVERY, s.REPORTS = 0.0, 1e9"),
    ):
        (place := folder / name).mkdir()
        experiment = analytic(1, epochs, ["ddim"], [3])
        experiment["learn"]["patience"] = epochs
        _, used[name] = sweep(
            experiment, place, f"import ld3_dist.cluster.search.tune_run as s; {rate}"
        )
    made = 2 * epochs
    cpu = {name: round(found["driver_cpu_s"], 1) for name, found in used.items()}
    return {
        "reports": made,
        "driver_cpu_s": cpu,
        "driver_cpu_per_report_s": round((cpu["all"] - cpu["none"]) / made, 5),
    }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "teachers": teachers, "warm": warm, "thousand": thousand, "idle": idle, "reports": reports,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/cluster.json"))
    parser.add_argument("--rounds", type=int, help="of teachers")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        more = {"rounds": given.rounds} if given.rounds and given.part == "teachers" else {}
        found = PARTS[given.part](Path(folder), **more)
    import ray
    import torch

    device = f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU"
    found |= {
        "device": device,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "torch": torch.__version__,
        "ray": ray.__version__,
    }
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(kept | {given.part: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
