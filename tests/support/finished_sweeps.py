"""Whole sweeps of the tiny experiment that the command line ran; tests of the cluster share them.

They are made once in a run of the tests. A test that changes a folder takes a copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faulty_storage import SWEEP, with_fault
from tiny_sweep import changed, write

from ld3_dist.experiment import load_experiment
from ld3_dist.store.opening import open_storage

PATIENCE = 1200.0
"""Seconds after which a sweep hangs, on a busy machine as well."""


@dataclass(frozen=True)
class Finished:
    """A sweep that the command line ran to its end."""

    file: Path
    out: Path
    stdout: str


@dataclass(frozen=True)
class Contest:
    """Two drivers on one folder: the first stayed where it was when it had kept the studies, the
    second was refused, the first was killed; then a third finished. With TensorBoard.
    """

    first: int
    second: subprocess.CompletedProcess[str]
    third: subprocess.CompletedProcess[str]
    lock_left: bool
    out: Path


def command_line(file: Path, out: Path, fault: str = "") -> subprocess.CompletedProcess[str]:
    """The command of a sweep, to its end, on a storage with a fault ("" for none)."""
    return subprocess.run(
        [*SWEEP, str(file), "--output", str(out)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=with_fault(fault),
        check=False,
    )


def run(file: Path, out: Path) -> tuple[Any, list[Any]]:
    """Run an experiment in this process; the sweep and its events."""
    from ld3_dist.cluster.sweep import Sweep

    sweep = Sweep(load_experiment(file), open_storage(out))
    return sweep, list(sweep.run())


def make_finished(folder: Path) -> Finished:
    """The tiny experiment, run as a user runs it."""
    data = changed(report={"figures": ["distance"]})
    file, out = write(folder, data), folder / "out"
    command = [sys.executable, "-m", "ld3_dist.cli", "sweep", str(file), "--output", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Finished(file, out, done.stdout)


def make_contest(folder: Path) -> Contest:
    """The tiny experiment, with all that happened to it; it is finished."""
    data = changed(
        solvers=["ddim"],
        resources={"callbacks": ["tensorboard"], "concurrent_trials": 1},
        report={"figures": []},
    )
    file, out = write(folder, data), folder / "out"
    first = subprocess.Popen(
        [*SWEEP, str(file), "--output", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=with_fault("stop write.after@studies"),
    )
    try:
        _, status = os.waitpid(first.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the first driver ended before it kept the studies"
        second = command_line(file, out)
    finally:
        first.kill()
        first.wait()
    lock_left = (out / "lock.json").exists()
    return Contest(first.pid, second, command_line(file, out), lock_left, out)


def copy_pairs(finished: Path, out: Path) -> Path:
    """An output folder in which only the teacher's pairs of a finished sweep are."""
    out.mkdir(parents=True)
    shutil.copy(finished / "experiment.json", out)
    shutil.copytree(finished / "pairs", out / "pairs")
    return out
