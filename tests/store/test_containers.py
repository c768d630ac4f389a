"""Containers may share host names and process numbers; a living driver is not taken for dead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ld3_dist.store import lock as locks
from ld3_dist.store.opening import open_storage
from ld3_dist.store.process import Process, this_process

ACQUIRE = """
import os, sys
from ld3_dist.store import lock
from ld3_dist.store.opening import open_storage
from ld3_dist.store.process import this_process
storage = open_storage(sys.argv[1])
print(this_process().pid, storage.sweep_temporary())
try:
    lock.acquire(storage).release()
except lock.LockHeld as error:
    print("held:", error)
"""


def of_another_container(pid: int) -> Process:
    me = this_process()
    space, _, ticks = me.start.rpartition("-")
    return Process(me.host, pid, f"{space}9-{ticks}", "10.0.0.7")


def test_a_process_of_another_container_is_not_judged_from_here() -> None:
    me = this_process()
    assert me.here
    assert me.alive
    assert me.address
    for pid in (me.pid, 2**22 + 1):  # there is such a number here, and there is not
        other = of_another_container(pid)
        assert not other.here
        assert other.alive is None
    assert Process(me.host, me.pid, me.start, "elsewhere") == me  # an address is no identity


def test_its_lock_is_held_until_its_heartbeat_ends(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    locks._write(storage, of_another_container(2**22 + 1))
    with pytest.raises(locks.LockHeld, match=r"on \S+ \(10\.0\.0\.7\) .*try again in \d+ s"):
        locks.acquire(storage)
    locks.acquire(storage, stale_after=-1.0).release()


def test_a_real_container_with_our_host_name(tmp_path: Path) -> None:
    """A child in a space of its own, where our number belongs to nobody."""
    own = ["unshare", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*own, "true"], check=False).returncode:
        pytest.skip("this machine allows no spaces of process numbers")
    storage = open_storage(tmp_path)
    me = this_process()
    mine = f".tmp~{me.host}~{me.pid}~{me.start}~0~rows"
    (tmp_path / mine).write_text("half a file")
    with locks.acquire(storage) as held:
        done = subprocess.run(
            [*own, sys.executable, "-c", ACQUIRE, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        held.check()
        found = locks.read_lock(storage)
        assert found is not None
        assert found[0] == me
    first, second = done.stdout.splitlines()
    assert int(first.split()[0]) < 10  # it counts from one
    assert first.endswith("[]")  # and sweeps away nothing of ours
    assert f"in use by process {me.pid} on {me.place}" in second
    assert (tmp_path / mine).exists()
