"""Whole sweeps of the tiny experiment that the command line ran; tests of the cluster share them.

They are made once in a run of the tests. A test that changes a folder takes a copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from command_line import exit_code
from faulty_storage import SWEEP, with_fault
from one_ray import one_ray
from rich.console import Console
from tiny_sweep import changed, write

from ld3_dist.experiment import load_experiment
from ld3_dist.store.opening import open_storage

PATIENCE = 1200.0
"""Seconds after which a sweep hangs, on a busy machine as well."""


FRAGILE = '''
"""A mixture whose worker is killed, or runs out of memory, the first time each stage needs it."""
import inspect, os, signal, sys
from pathlib import Path
from ld3_dist.core.noise import EDM
from ld3_dist.models.analytic.mixture import mixture_2d

MARKS = Path({marks!r})


def in_worker():
    """True in a worker, False in the driver; a constant would make their hashes differ."""
    return "default_worker" in sys.argv[0]


def once(name):
    """True for the first caller of all."""
    try:
        os.close(os.open(MARKS / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Fragile:
    def __init__(self):
        self.inner = mixture_2d(EDM())
        self.noise, self.shape, self.decode = self.inner.noise, self.inner.shape, self.inner.decode

    def __call__(self, x, t, condition=None):
        callers = [frame.filename for frame in inspect.stack(0)]
        stage = "trial" if any("core/learning" in name for name in callers) else "actor"
        if in_worker() and once(stage + "-killed"):
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
        if in_worker() and once(stage + "-memory"):
            raise MemoryError("Unable to allocate 3.00 GiB")
        return self.inner(x, t)


def build(options):
    return Fragile()
'''


@dataclass(frozen=True)
class Finished:
    """A sweep that the command line ran to its end."""

    file: Path
    out: Path
    stdout: str


@dataclass(frozen=True)
class Contest:
    """Two drivers on one folder: the first stayed where it was when it had kept the studies, the
    second was refused, the first was killed; then a third finished. With TensorBoard. A worker of
    each stage was killed on the way, and one had no memory.
    """

    first: int
    second: subprocess.CompletedProcess[str]
    third: subprocess.CompletedProcess[str]
    lock_left: bool
    faults: set[str]
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


def on_one_ray(file: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """The command of a sweep in this process, on the Ray that all tests share."""
    from ld3_dist.cli import app as cli

    arguments = ["sweep", str(file), "--output", str(out)]
    said, told = StringIO(), StringIO()
    with (
        one_ray(),
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(said),
        redirect_stderr(told),
    ):
        patch.setattr(cli, "console", Console(width=200))
        code = exit_code(patch, *arguments)
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), told.getvalue())


def run(file: Path, out: Path) -> tuple[Any, list[Any]]:
    """Run an experiment in this process; the sweep and its events."""
    from ld3_dist.cluster.sweep import Sweep

    sweep = Sweep(load_experiment(file), open_storage(out))
    return sweep, list(sweep.run())


def make_finished(folder: Path) -> Finished:
    """The tiny experiment, run as a user runs it."""
    data = changed(report={"figures": ["distance"]})
    file, out = write(folder, data), folder / "out"
    done = on_one_ray(file, out)
    assert done.returncode == 0, done.stderr[-2000:]
    return Finished(file, out, done.stdout)


def make_contest(folder: Path) -> Contest:
    """The tiny experiment, with all that happened to it; it is finished."""
    marks = folder / "marks"
    marks.mkdir()
    (folder / "fragile.py").write_text(FRAGILE.format(marks=str(marks)))
    data = changed(
        models=[{"model": f"python:{folder}/fragile.py:build", "name": "fragile"}],
        solvers=["ddim"],
        resources={"callbacks": ["tensorboard"], "concurrent_trials": 1, "retries": 3},
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
        second = on_one_ray(file, out)
    finally:
        first.kill()
        first.wait()
    lock_left = (out / "lock.json").exists()
    third = on_one_ray(file, out)
    faults = {mark.name for mark in marks.iterdir()}
    return Contest(first.pid, second, third, lock_left, faults, out)


def copy_pairs(finished: Path, out: Path) -> Path:
    """An output folder in which only the teacher's pairs of a finished sweep are."""
    out.mkdir(parents=True)
    shutil.copy(finished / "experiment.json", out)
    shutil.copytree(finished / "pairs", out / "pairs")
    return out
