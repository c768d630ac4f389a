"""One Ray on this machine for all tests that need no other: its start takes longer than they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def one_ray() -> Iterator[None]:
    """A Ray that outlives this: sweeps in this process find it there and leave it there."""
    import ray

    from ld3_dist.cluster.ray.connect import connect

    connect(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "shutdown", lambda *_, **__: None)
        yield


@pytest.fixture
def local_ray() -> Iterator[None]:
    """The Ray that all tests share, for one of them."""
    with one_ray():
        yield


def end_local_ray() -> None:
    """Before a test that needs another Ray."""
    import ray

    ray.shutdown()
