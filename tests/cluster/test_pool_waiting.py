"""A pool without a worker says what it asked for, of which nodes, and what is free there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ld3_dist.cluster import logs
from ld3_dist.cluster.ray import pool as pools
from ld3_dist.store.opening import open_storage


@pytest.fixture(scope="module", autouse=True)
def address() -> Iterator[str]:
    """Ray with two CPUs on this machine, and the address of its node."""
    import ray

    from ld3_dist.cluster.ray.connect import SETTINGS

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
    yield ray.util.get_node_ip_address()
    ray.shutdown()


def test_no_room(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pools, "NOTICE", 0.5)
    pool = pools.Pool(2, 3.0, 0, 0, deadline=2.0)
    pool.add([pools.Task("teach", str(i), len, ("abc",)) for i in range(2)])
    seen = list[str]()

    def work() -> None:
        for outcome in pool.run():
            assert isinstance(outcome, pools.Waiting)
            seen.append(outcome.message)

    with (
        logs.driver_log(open_storage(tmp_path)),
        pool,
        pytest.raises(RuntimeError, match="no worker has started for") as caught,
    ):
        work()
    assert seen
    for message in [*seen, str(caught.value)]:
        assert f"asked for 2 of 3 CPU; the cluster has 2 of 2 CPU free on 1 node ({address})" in (
            message
        )
    (log,) = tmp_path.glob(f"logs/*-driver-*-{address}-*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert seen[0] in [line["message"] for line in lines if line["stage"] == "workers"]


def test_a_worker_that_starts_is_logged_with_its_node(address: str, tmp_path: Path) -> None:
    pool = pools.Pool(1, 1.0, 0, 0, deadline=60.0)
    pool.add([pools.Task("teach", "a", len, ("abc",))])
    with logs.driver_log(open_storage(tmp_path)), pool:
        (done,) = pool.run()
    assert isinstance(done, pools.Done)
    assert done.result == 3
    files = tmp_path.glob("logs/*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    (started,) = [line for line in lines if line["stage"] == "workers"]
    assert started["worker_node"].endswith(f"({address})")
    assert started["worker_pid"] > 0
    assert started["seconds"] > 0
