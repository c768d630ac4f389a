"""Is the cluster still there? A driver whose cluster has died must say so and end; it must never
wait for ever.

Ray itself ends a driver that cannot reach the head for 60 s
(`RAY_gcs_rpc_server_reconnect_timeout_s`), without a word on how to go on. We look more often and
give up earlier; Ray's own limit stays behind as the last resort."""

from __future__ import annotations

import socket
import time

import ray

LOOK_EVERY = 3.0
PATIENCE = 20.0
"""Seconds without an answer after which the head counts as lost; a head that comes back sooner is
not noticed.
"""

CONNECT = 2.0


class ClusterLost(RuntimeError):
    """The head of the cluster does not answer any more."""


class HeadWatch:
    """Looks after the head of the cluster this process is connected to; cheap to call often."""

    def __init__(self) -> None:
        self.address = ray.get_runtime_context().gcs_address
        host, _, port = self.address.rpartition(":")
        self.place = (host.strip("[]"), int(port))
        self.looked = self.seen = time.monotonic()

    @property
    def answers(self) -> bool:
        """Did the head answer when last looked at? If not, calls into Ray may block until Ray ends
        the process.
        """
        return self.seen >= self.looked

    def check(self) -> None:
        """Raises ClusterLost once the head has not answered for a while."""
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY:
            return
        self.looked = now
        try:
            socket.create_connection(self.place, timeout=CONNECT).close()
            self.seen = time.monotonic()
        except OSError as error:
            if now - self.seen > PATIENCE:
                raise ClusterLost(
                    f"the head of the Ray cluster at {self.address} has not answered for "
                    f"{now - self.seen:.0f} s "
                    f"({error.strerror or error}); everything finished is kept"
                ) from error


def room_for(size: dict[str, float]) -> bool:
    """Has any living node as many CPUs and GPUs as this, free or not?"""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(
        all(node.get(key.upper(), 0.0) >= amount for key, amount in size.items()) for node in nodes
    )
