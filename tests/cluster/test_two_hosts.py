"""A cluster of two hosts, made by `ray start` in two network namespaces: with a token and without,
and a host whose network fails for a while.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import changed, write
from two_hosts import HEAD, WORKER, Host, NotAllowed, two_hosts

from ld3_dist import load_results

PORT = 6379
ADDRESS = f"{HEAD}:{PORT}"
HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
}
"""A host that is silent counts as lost after some ten seconds in place of thirty."""

GAMMAS = 70
"""Points of the search in each of two cells: work for a host that is lost and comes back."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts() as made:
            yield made
    except NotAllowed as error:
        pytest.skip(f"two hosts on one machine are not allowed here: {error}")


def environment(home: Path, mode: str | None) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_"))}
    clean |= {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    clean |= {"RAY_raylet_start_wait_time_s": "150"}  # of a busy machine; 30 s are Ray's own
    return clean | HEALTH | ({"RAY_AUTH_MODE": mode} if mode else {})


def lines(out: Path) -> list[dict[str, Any]]:
    """Every line of the sweep's logs, in order of time."""
    files = out.glob("logs/*.jsonl")
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return sorted(found, key=lambda line: line["time"])


def trials_of(out: Path, address: str) -> set[str]:
    """Trials that a host has begun."""
    return {
        line["item"]
        for line in lines(out)
        if (line["event"], line["stage"], line["address"]) == ("start", "search", address)
    }


def noticed(out: Path) -> bool:
    """True if the driver knows that a worker is gone.

    Its trial is no failure if it finished on its own: the hosts of this test share their disk.
    """
    return any("Trial task failed" in line.get("message", "") for line in lines(out))


def wait_until(what: Callable[[], Any], sweep: subprocess.Popen[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert sweep.poll() is None, (sweep.communicate(), "the sweep has ended")
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


def start_sweep(
    host: Host, file: Path, out: Path, variables: dict[str, str]
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ld3_dist.cli", "sweep", str(file), "--output", str(out)]
    return subprocess.Popen(
        host.command(*command, "--address", ADDRESS),
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_host_is_lost_and_comes_back(hosts: tuple[Host, Host], tmp_path: Path, mode: str) -> None:
    """Its trials are done again, it gets others when it is back, and every line and row names the
    host by its address: the hosts have one name.
    """
    head, worker = hosts
    token = secrets.token_hex(32)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(token)
    variables = environment(tmp_path, mode)
    head.ray_start(tmp_path, ADDRESS, **variables)
    worker.ray_start(tmp_path, ADDRESS, **variables)
    search = {"grid": {"gamma": [i / 1000 for i in range(GAMMAS)]}, "optuna": {}, "rounds": 1}
    experiment = changed(
        search=search, evaluate={"samples": 0}, learn={"epochs": 60, "batch": 1},
        resources={"actors": 2, "cpus_per_actor": 1, "cpus_per_trial": 1, "retries": 5},
    )  # fmt: skip
    file, out = write(tmp_path, experiment), tmp_path / "out"
    if mode == "token":
        refused = start_sweep(head, file, out, environment(tmp_path, None))
        said = refused.communicate()[1]
        assert refused.returncode == 2, said
        assert "demands a token" in said
        assert "RAY_AUTH_MODE=token" in said
        assert not out.exists() or not list(out.rglob("*.parquet"))
    sweep = start_sweep(head, file, out, variables)
    try:
        wait_until(lambda: trials_of(out, WORKER), sweep, 200)
        worker.cable("down")
        wait_until(lambda: noticed(out), sweep, 120)
        before = trials_of(out, WORKER)
        worker.clear()  # as a machine that was switched off and on again
        worker.cable("up")
        worker.ray_start(tmp_path, ADDRESS, **variables)
        wait_until(lambda: trials_of(out, WORKER) - before, sweep, 200)
        said, complained = sweep.communicate(timeout=900)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, said + complained
    assert "Traceback" not in said + complained
    rows = load_results(out).query("kind == 'learned'")
    assert len(rows) == 2 * GAMMAS * 2  # cells, and starts
    assert set(rows["status"]) == {"ok"}
    assert set(rows["address"]) == {HEAD, WORKER}
    assert set(rows["host"]) == {"node"}
    assert {line["address"] for line in lines(out)} == {HEAD, WORKER}
    assert {line["node"] for line in lines(out)} == {"node"}
    names = [log.name for log in (out / "logs").iterdir()]
    assert any(f"-worker-node-{WORKER}-" in name for name in names)
    assert token not in said + complained
    written = [file.read_bytes() for file in out.rglob("*") if file.is_file()]
    assert not any(token.encode() in body for body in written)
