"""Watch over the head of the cluster, so that a driver whose cluster has died says so and ends.

Ray itself ends a driver that cannot reach the head for 60 s
(`RAY_gcs_rpc_server_reconnect_timeout_s`), without a word on how to go on. We look more often and
give up earlier; Ray's own limit stays behind as the last resort."""

from __future__ import annotations

import socket
import time

import ray

LOOK_EVERY = 3.0
PATIENCE = 20.0
"""Seconds without an answer after which the head counts as lost. They must leave the driver time to
say so before Ray's own 60 s are over.
"""

CONNECT = 2.0


class ClusterLost(RuntimeError):
    """The head of the cluster does not answer any more."""


class HeadWatch:
    """A watch over the head of the cluster that this process is connected to."""

    def __init__(self) -> None:
        self.address = ray.get_runtime_context().gcs_address
        host, _, port = self.address.rpartition(":")
        self.socket = (host.strip("[]"), int(port))
        self.looked = self.seen = time.monotonic()

    @property
    def answers(self) -> bool:
        """True if the head answers now. If not, calls into Ray may block until Ray ends us."""
        return self._look() is None

    def check(self) -> None:
        """Raise ClusterLost once the head has not answered for PATIENCE seconds."""
        if time.monotonic() - self.looked < LOOK_EVERY:
            return
        error = self._look()
        silence = self.looked - self.seen
        if error is not None and silence > PATIENCE:
            raise ClusterLost(
                f"the head of the Ray cluster at {self.address} has not answered for "
                f"{silence:.0f} s ({error.strerror or error}); everything finished is kept"
            ) from error

    def _look(self) -> OSError | None:
        """Try a connection; why it failed."""
        self.looked = time.monotonic()
        try:
            socket.create_connection(self.socket, timeout=CONNECT).close()
        except OSError as error:
            return error
        self.seen = self.looked
        return None


def room_for(size: dict[str, float]) -> bool:
    """Return True if any living node has as much of everything as this, free or not."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(
        all(
            node.get(key.upper() if key in ("cpu", "gpu") else key, 0.0) >= amount
            for key, amount in size.items()
        )
        for node in nodes
    )


def room_in_words(size: dict[str, float], count: int) -> str:
    """Say in words what `count` workers of this size need, and how much of it is free."""
    total, free = ray.cluster_resources(), ray.available_resources()
    nodes = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    keys = [key for key, amount in size.items() if amount] or ["CPU"]
    asked = " and ".join(f"{size[key]:g} {key}" for key in keys)
    left = " and ".join(f"{free.get(key, 0.0):g} of {total.get(key, 0.0):g} {key}" for key in keys)
    return (
        f"asked for {count} of {asked}; the cluster has {left} free on {len(nodes)} "
        f"node{'s' * (len(nodes) != 1)} ({', '.join(nodes)}). Either other work holds the rest, or "
        "the workers have it and their processes are still starting, which takes long from a cold "
        "or shared disk and on a busy machine"
    )
