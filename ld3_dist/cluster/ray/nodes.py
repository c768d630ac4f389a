"""A check of every node: one task per node reports its versions and whether it sees the storage.

The driver writes a file, every node reads it and writes one of its own: a folder that is local to
one machine, or credentials that only some machines have, show before anything starts. Nodes that
join later are not asked."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray
from ray.exceptions import RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ... import __version__
from ...core.errors import InputError
from ...store.process import node_name, this_process
from ...store.storage import Storage

PATIENCE = 120.0
"""Seconds all nodes together have to answer; the first task on a node imports what it needs."""


@dataclass(frozen=True)
class NodeReport:
    """The report of a node: its versions, and why it is blind to the storage ("" if it is not)."""

    versions: dict[str, str]
    blind: str


def versions() -> dict[str, str]:
    """The versions that must agree for the same work to give the same rows.

    Builds of PyTorch (+cpu, +cu130) may differ."""
    python = ".".join(platform.python_version_tuple()[:2])
    torch = version("torch").partition("+")[0]
    return {"python": python, "ray": ray.__version__, "torch": torch, "ld3_dist": __version__}


def inspect(storage: Storage, probe: str) -> NodeReport:
    """Runs on a node: read the driver's file, write one."""
    blind = ""
    try:
        storage.read_bytes(probe)
        storage.check_writable()
    except (OSError, ValueError, ImportError) as error:
        blind = f"{type(error).__name__}: {error}"
    return NodeReport(versions(), blind)


def check_nodes(storage: Storage) -> None:
    """Ask every node. Raises InputError that names the node and what is wrong there."""
    me = this_process()
    # named so that a killed driver's is swept away
    probe = f".tmp~{me.host}~{me.pid}~{me.start}~0~probe"
    storage.write_bytes(probe, b"ld3_dist")
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        ask = ray.remote(num_cpus=0, max_retries=1)(
            inspect
        )  # once more where a worker died, not where it raised
        refs = {
            ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(
                storage, probe
            ): f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            for node in nodes
        }
        ray.wait(list(refs), num_returns=len(refs), timeout=PATIENCE)
        complaints = [
            text for ref, name in refs.items() for text in _complaints(ref, name, storage)
        ]
    finally:
        storage.remove(probe)
    if complaints:
        raise InputError("; ".join(complaints))


def _complaints(ref: Any, name: str, storage: Storage) -> list[str]:
    if not ray.wait([ref], timeout=0)[0]:
        return [f"{name} did not answer within {PATIENCE:.0f} s; take it out of the cluster"]
    try:
        report: Any = ray.get(ref)
    except TaskUnschedulableError:  # gone since we listed it
        return []
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        return [f"{name} cannot run ld3_dist ({last}); install the same version everywhere"]
    mine = versions()
    texts = [
        f"{name} has {what} {report.versions.get(what)}, the driver ({node_name()}, "
        f"process {os.getpid()}) {mine[what]}; install the same everywhere"
        for what in mine
        if report.versions.get(what) != mine[what]
    ]
    if report.blind:
        texts.append(
            f"{name} does not see {storage.url} ({report.blind}); use a folder that all nodes "
            f"share, or an object "
            "store, with credentials on every node"
        )
    return texts
