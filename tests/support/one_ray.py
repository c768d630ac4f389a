"""One Ray on this machine for all tests that need no other: its start takes longer than they do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def local_ray() -> Iterator[None]:
    """A Ray that outlives the test: sweeps in this process find it there and leave it there."""
    import ray

    from ld3_dist.cluster.ray.connect import connect

    connect(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "shutdown", lambda *_, **__: None)
        yield


def end_local_ray() -> None:
    """Before a test that needs another Ray."""
    import ray

    ray.shutdown()
