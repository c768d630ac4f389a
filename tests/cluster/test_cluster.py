"""Several nodes on this machine: nodes and the head are lost on the way, workers die while they
write to S3.

The reference is the same sweep done by one process without Ray.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from faulty_storage import SWEEP, with_fault
from finished_sweeps import PATIENCE, copy_pairs
from forked_sweeps import SMALL, sweep
from object_store import endpoint  # noqa: F401
from tiny_sweep import changed, lasting, write

from ld3_dist.store.opening import open_storage

ROOT = Path(__file__).parents[2]


def load_chaos() -> Any:
    """The script, with trials a third as long."""
    spec = importlib.util.spec_from_file_location("chaos", ROOT / "experiments/benchmarks/chaos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    module.EXPERIMENT["learn"] = {"epochs": 20, "batch": 4}
    module.LIMIT = PATIENCE
    return module


def table_of(experiment: dict[str, Any], out: Path) -> pd.DataFrame:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker of one CPU has
    sweep(open_storage(out), experiment)
    torch.set_num_threads(threads)
    return lasting(out)


def until(found: Callable[[], Any], driver: subprocess.Popen[bytes], log: Path) -> Any:
    """What `found` finds, as soon as it finds something."""
    end = time.monotonic() + PATIENCE
    while not (seen := found()):
        assert driver.poll() is None, log.read_text()[-2000:]
        if time.monotonic() > end:
            pytest.fail(f"nothing came of it: {log.read_text()[-2000:]}")
        time.sleep(0.05)
    return seen


@pytest.fixture(scope="module")
def chaos() -> Any:
    return load_chaos()


@pytest.fixture(scope="module")
def reference(chaos: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    table_of(chaos.EXPERIMENT, out)
    return out


@pytest.fixture(scope="module")
def expected(reference: Path) -> pd.DataFrame:
    return lasting(reference)


@pytest.fixture(scope="module")
def nodes(chaos: Any) -> Iterator[Any]:
    made = chaos.Nodes()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def file(chaos: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster") / "chaos.yaml"
    made.write_text(yaml.safe_dump(chaos.EXPERIMENT))
    return made


@pytest.mark.slow  # quicker: test_workers_that_die_or_run_out_of_memory
def test_teachers_spread_over_nodes_and_a_lost_node_loses_nothing(
    chaos: Any, nodes: Any, file: Path, expected: pd.DataFrame
) -> None:
    out = file.with_name("lost-node")
    driver = chaos.start(file, out, nodes.cluster.address)
    log = Path(f"{out}.log")

    def everywhere() -> bool:
        """An actor on every node."""
        raylets = [nodes.raylet(node) for node in nodes.nodes]
        return all(
            any(chaos.titled(c, chaos.TITLES["actor"]) for c in r.children(recursive=True))
            for r in raylets
        )

    until(everywhere, driver, log)
    nodes.workers_of("node")[0].kill()
    assert chaos.finish(driver) == 0, log.read_text()[-2000:]
    assert chaos.difference(out, expected) == ""
    assert chaos.left_over(out) == []
    assert chaos.count_orphans(nodes) == 0
    nodes.mend()


@pytest.mark.slow  # quicker: test_an_interrupted_sweep_goes_on
def test_a_killed_driver_leaves_no_workers_and_the_same_command_goes_on(
    chaos: Any, nodes: Any, file: Path, reference: Path, expected: pd.DataFrame
) -> None:
    out = copy_pairs(reference, file.with_name("killed-driver"))
    driver = chaos.start(file, out, nodes.cluster.address)
    until(lambda: nodes.workers_of("trial"), driver, Path(f"{out}.log"))
    driver.kill()
    assert chaos.finish(driver) == -signal.SIGKILL
    assert chaos.count_orphans(nodes) == 0
    assert chaos.finish(chaos.start(file, out, nodes.cluster.address)) == 0
    assert chaos.difference(out, expected) == ""
    assert chaos.left_over(out) == []


@pytest.mark.slow
def test_a_lost_head_ends_the_driver_with_a_message_and_another_cluster_goes_on(
    chaos: Any, nodes: Any, file: Path, expected: pd.DataFrame
) -> None:
    """The last of these tests: the cluster is gone afterwards."""
    out = file.with_name("lost-head")
    driver = chaos.start(file, out, nodes.cluster.address)
    log = Path(f"{out}.log")
    until(lambda: nodes.workers_of("trial"), driver, log)
    os.kill(nodes.cluster.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
    assert chaos.finish(driver) == 1, log.read_text()[-2000:]
    said = " ".join(log.read_text().split())
    assert "the head of the Ray cluster" in said
    assert "everything finished is kept" in said
    assert "Go on with: ld3-dist sweep" in said
    again = [sys.executable, "-m", "ld3_dist.cli", "sweep", str(file), "--output", str(out)]
    done = subprocess.run(again, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert chaos.difference(out, expected) == ""


@pytest.mark.slow
def test_workers_killed_while_they_upload(endpoint: str, tmp_path: Path) -> None:  # noqa: F811
    """Half-way through every file of rows, in actors, in trials and in the driver: then again,
    undisturbed.
    """
    experiment = changed(**SMALL)
    file, place = write(tmp_path, experiment), f"s3://bucket/sweep?endpoint_override={endpoint}"
    command = [sys.executable, "-m", "ld3_dist.cli", "sweep", str(file), "--output", place]
    done = subprocess.run(
        [*SWEEP, *command[4:]],
        env=with_fault("write.half@rows/"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    storage = open_storage(place)
    assert not storage.list("rows")
    assert storage.list("failures")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pd.testing.assert_frame_equal(
        lasting(storage), table_of(experiment, tmp_path / "reference"), check_exact=True
    )
    assert not storage.exists("lock.json")
