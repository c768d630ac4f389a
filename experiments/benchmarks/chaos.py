"""Sweeps on several nodes, each hit by one SIGKILL at a random moment, resumed by the same command.

    python experiments/benchmarks/chaos.py [--runs 30] [--seed 0] [--out
    results/benchmarks/chaos.json]

Victims: a teacher (or evaluation) actor, a trial worker, the raylet of a node that is not the head,
the driver. The moment is drawn uniformly from the time in which the undisturbed reference run had
such a victim. Afterwards the same command is given again, and the table must equal the reference's
in every column but those in PASSING. Counted besides: worker processes of a sweep that outlive its
driver by more than GRACE seconds; temporary files, checkpoints, locks and scratch left in the
output folder; trials that went on from a checkpoint, kept after every epoch. The nodes are
simulated on this machine by ray.cluster_utils.Cluster."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import ray
import yaml
from ray.cluster_utils import Cluster

from ld3_dist import load_results

VICTIMS = ("actor", "trial", "node", "driver")
PASSING = (
    "source", "seconds", "device_seconds", "peak_memory", "started", "host", "address", "device",
    "attempts", "git_commit",
)  # fmt: skip
"""Columns that may differ between two runs of an experiment (their namesakes of the evaluation as
well).
"""

GRACE = 15.0
LIMIT = 240.0
"""Seconds a driver may take; more is a hang."""

TITLES = {"actor": "ray::Worker", "trial": "ray::ImplicitFunc"}

EXPERIMENT: dict[str, Any] = {
    "name": "chaos",
    "models": ["analytic:mixture-2d"],
    "solvers": ["ddim", "ipndm-2"],
    "nfe": [3],
    "teacher": {"solver": "unipc-3", "nfe": 12, "start": "karras"},
    "pairs": {"train": 8, "valid": 8},
    "learn": {"epochs": 60, "batch": 4},
    "search": {
        "grid": {"gamma": [0, 0.01]},
        "optuna": {"lr": {"low": 0.03, "high": 0.3, "log": True}},
        "rounds": 2,
        "members": {"seeds": 2, "starts": ["log_snr"]},
    },
    "baselines": ["uniform", "karras"],
    "evaluate": {"samples": 40},
    "resources": {
        "shard": 8,
        "batch": 20,
        "actors": 2,
        "retries": 2,
        "deadline": 60,
        "checkpoint_seconds": 0,
    },
}


class Nodes:
    """A head without CPUs, where the driver joins, and two nodes of one CPU that do the work."""

    def __init__(self, workers: int = 2) -> None:
        self.workers = workers
        os.environ.setdefault(
            "RAY_raylet_start_wait_time_s", "180"
        )  # a busy machine starts nodes slowly
        head = {"num_cpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self.cluster.address)
        self.nodes: list[Any] = []
        self.mend()

    def mend(self) -> None:
        """Put new nodes in the place of dead ones."""
        dead = [
            node for node in self.nodes if not node.any_processes_alive() or not self.raylet(node)
        ]
        for node in dead:
            self.nodes.remove(node)
            self.cluster.remove_node(node, allow_graceful=False)
        while len(self.nodes) < self.workers:
            for patience in (2, 1, 0):  # on a busy machine a node may start too slowly for Ray
                try:
                    self.nodes.append(
                        self.cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
                    )
                    break
                except Exception:
                    if not patience:
                        raise

    @staticmethod
    def raylet(node: Any) -> psutil.Process | None:
        found = node.all_processes.get("raylet", [])
        if not found or found[0].process.poll() is not None:
            return None
        return psutil.Process(found[0].process.pid)

    def workers_of(self, kind: str) -> list[psutil.Process]:
        """Processes of our nodes that are at work as actors or trials; the nodes' raylets for
        "node".
        """
        raylets = [found for node in self.nodes if (found := self.raylet(node))]
        if kind == "node":
            return raylets
        found = []
        for raylet in raylets:
            try:
                children = raylet.children(recursive=True)
            except psutil.NoSuchProcess:
                continue
            found += [child for child in children if titled(child, TITLES[kind])]
        return found

    def busy(self) -> list[psutil.Process]:
        """All workers of any sweep."""
        return self.workers_of("actor") + self.workers_of("trial")

    def stop(self) -> None:
        self.cluster.shutdown()


def titled(process: psutil.Process, title: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and " ".join(process.cmdline()).startswith(
            title
        )
    except psutil.Error:
        return False


@dataclass
class Run:
    """What became of one run."""

    run: int
    victim: str
    moment: float
    stage: str = ""
    exit: int | None = None
    exit_resumed: int | None = None
    seconds: float = 0.0
    equal: bool = False
    difference: str = ""
    orphans: int = 0
    temporary: list[str] = field(default_factory=list)
    redrawn: int = 0
    continued: int = 0  # trials that went on from a checkpoint


def start(file: Path, out: Path, address: str, **environment: str) -> subprocess.Popen[bytes]:
    """The command of a sweep; its output goes to <out>.log."""
    command = [
        sys.executable,
        "-m",
        "ld3_dist.cli",
        "sweep",
        str(file),
        "--output",
        str(out),
        "--address",
        address,
    ]
    with open(f"{out}.log", "ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def finish(driver: subprocess.Popen[bytes]) -> int:
    """Exit code, -1 for a driver that hangs."""
    try:
        return driver.wait(LIMIT)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()
        return -1


def lasting(out: Path) -> pd.DataFrame:
    """The results without what may differ between runs, by key."""
    frame = load_results(out)
    passing = [column for column in frame.columns if column.removesuffix("_eval") in PASSING]
    return frame.drop(columns=passing).sort_values("key", ignore_index=True)


def difference(out: Path, expected: pd.DataFrame) -> str:
    """How a table differs from the reference; "" where it does not."""
    try:
        pd.testing.assert_frame_equal(lasting(out), expected, check_exact=True)
    except (AssertionError, ValueError) as error:
        return " ".join(str(error).split())[:300]
    return ""


def left_over(out: Path) -> list[str]:
    """Temporary files, checkpoints, lock and scratch of a finished sweep."""
    names = [path.relative_to(out).as_posix() for path in out.rglob("*")]
    passing = ("parts/", "checkpoints/")
    mine = [
        name
        for name in names
        if ".tmp" in name or name in ("lock.json", ".ray") or name.startswith(passing)
    ]
    return [name for name in mine if not (out / name).is_dir() or name == ".ray"]


def continued(out: Path) -> int:
    """How often a trial went on from its checkpoint."""
    logs = (out / "logs").glob("*.jsonl")
    return sum(
        "goes on after epoch" in line for log in logs for line in log.read_text().splitlines()
    )


def stage_of(out: Path) -> str:
    """The last line the driver wrote before it was hit."""
    lines = Path(f"{out}.log").read_text(errors="replace").splitlines()
    return next(
        (
            line
            for line in reversed(lines)
            if line.startswith(("teacher", "base", "trials", "sample", "sco"))
        ),
        "",
    )


Windows = dict[str, tuple[float, float]]


def reference(nodes: Nodes, file: Path, out: Path) -> Windows:
    """Run undisturbed; return when there were victims of each kind, in seconds from the start."""
    clock, driver = time.monotonic(), start(file, out, nodes.address)
    seen: dict[str, list[float]] = {kind: [] for kind in VICTIMS}
    while driver.poll() is None and time.monotonic() - clock < LIMIT:
        now = time.monotonic() - clock
        for kind in ("actor", "trial"):
            seen[kind] += [now] * bool(nodes.workers_of(kind))
        time.sleep(0.1)
    length = time.monotonic() - clock
    assert finish(driver) == 0, Path(f"{out}.log").read_text()[-2000:]
    windows = {kind: (min(times), max(times)) for kind, times in seen.items() if times}
    first = windows["actor"][0]
    return windows | {"node": (first, length), "driver": (1.0, length)}


def hit(
    nodes: Nodes, driver: subprocess.Popen[bytes], kind: str, moment: float, rng: random.Random
) -> bool:
    """Wait for the moment and kill; False if the driver ended first."""
    clock = time.monotonic()
    while driver.poll() is None:
        victims = []
        if time.monotonic() - clock >= moment:
            victims = [psutil.Process(driver.pid)] if kind == "driver" else nodes.workers_of(kind)
        if victims:
            try:
                rng.choice(victims).send_signal(signal.SIGKILL)
                return True
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    return False


def one(
    nodes: Nodes,
    file: Path,
    out: Path,
    run: Run,
    windows: Windows,
    expected: pd.DataFrame,
    rng: random.Random,
) -> Run:
    """One sweep, hit once, resumed, compared. One that ends before its moment shows how fast the
    machine now is.
    """
    clock = time.monotonic()
    while True:
        begun = time.monotonic()
        run.moment = round(rng.uniform(*windows[run.victim]), 2)
        place = out.with_name(f"{out.name}-{run.redrawn}")
        driver = start(file, place, nodes.address)
        was_hit = hit(nodes, driver, run.victim, run.moment, rng)
        run.stage = stage_of(place)
        run.exit = finish(driver)
        if was_hit:
            break
        run.redrawn += 1
        faster = (time.monotonic() - begun) / windows["driver"][1]
        windows |= {
            kind: (first * faster, last * faster) for kind, (first, last) in windows.items()
        }
    run.orphans += count_orphans(nodes)
    nodes.mend()
    run.exit_resumed = finish(start(file, place, nodes.address))
    run.difference = difference(place, expected)
    run.equal = not run.difference and run.exit_resumed == 0
    run.orphans += count_orphans(nodes)
    run.temporary, run.continued = left_over(place), continued(place)
    run.seconds = round(time.monotonic() - clock, 1)
    return run


def count_orphans(nodes: Nodes) -> int:
    """Workers left when the driver has been gone for a while."""
    end = time.monotonic() + GRACE
    while nodes.busy() and time.monotonic() < end:
        time.sleep(0.2)
    return len(nodes.busy())


def chaos(folder: Path, victims: list[str], seed: int) -> Iterator[Run | float]:
    """Run after run on one cluster; first the seconds of the reference."""
    rng = random.Random(seed)
    file = folder / "chaos.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT))
    nodes = Nodes()
    try:
        clock = time.monotonic()
        windows = reference(nodes, file, folder / "reference")
        yield round(time.monotonic() - clock, 1)
        expected = lasting(folder / "reference")
        for i, victim in enumerate(victims):
            yield one(
                nodes, file, folder / f"run-{i:02d}", Run(i, victim, 0.0), windows, expected, rng
            )
    finally:
        nodes.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/chaos.json"))
    parser.add_argument("--folder", type=Path, help="keep the sweeps here")
    given = parser.parse_args()
    victims = [VICTIMS[i % len(VICTIMS)] for i in range(given.runs)]
    runs: list[Run] = []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        seconds = 0.0
        for found in chaos(folder, victims, given.seed):
            if not isinstance(found, Run):
                seconds = found
                print(f"reference: {found} s", flush=True)
                continue
            runs.append(found)
            print(asdict(found), flush=True)
            given.out.write_text(json.dumps(summary(runs, given.seed, seconds), indent=1) + "\n")
    print(json.dumps(summary(runs, given.seed, seconds)["counts"]))
    raise SystemExit(not all(run.equal for run in runs))


def summary(runs: list[Run], seed: int, seconds: float) -> dict[str, Any]:
    """What the file holds."""
    counts = {
        "runs": len(runs),
        "equal": sum(run.equal for run in runs),
        "orphans": sum(run.orphans for run in runs),
    }
    counts |= {
        "temporary": sum(len(run.temporary) for run in runs),
        "hangs": sum(run.exit == -1 for run in runs),
    }
    counts |= {"continued": sum(run.continued for run in runs)}
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU"
    device = f"{cores}; head and two nodes of one CPU, simulated"
    return {
        "command": "python experiments/benchmarks/chaos.py",
        "seed": seed,
        "device": device,
        "ray": ray.__version__,
        "may_differ": list(PASSING),
        "reference_seconds": seconds,
        "counts": counts,
        "table": [asdict(run) for run in runs],
    }


if __name__ == "__main__":
    main()
