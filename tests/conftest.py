"""Fixtures that several test files share, and which tests a parallel run keeps together."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from edm_pickles import format_modules  # noqa: F401  a fixture
from one_ray import local_ray  # noqa: F401  a fixture

TESTS = Path(__file__).parent
WITHOUT_RAY = {
    "test_batches",
    "test_cluster_files",
    "test_faults",
    "test_output_folder",
    "test_parts",
    "test_searcher",
}
"""Files of the cluster's folder whose tests start no Ray."""

ON_ONE_RAY = {"local_ray", "finished", "contest"}
"""Fixtures that use the Ray that stays."""

CHEAP = {"one_thread", "folders"}
"""Fixtures of module scope that cost nothing to make twice."""


def pytest_configure(config: pytest.Config) -> None:
    """A process of a parallel run uses one thread: the others use the other cores.

    Nothing is forced to the disk: no test turns the power off.
    """
    os.fsync = lambda file: None
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests run in the same process, for `--dist loadgroup`.

    Two Rays at once would fight for the cores, so all tests that start one form a group. Tests
    that share a costly fixture of their file form a group per file. The others go anywhere. Those
    that need no Ray of their own come last, and find one that stays.
    """
    leave_siblings(items)
    items.sort(key=lambda item: bool(ON_ONE_RAY & {*getattr(item, "fixturenames", ())}))
    for item in items:
        group = group_of(item)
        if group:
            item.add_marker(pytest.mark.xdist_group(group))


def leave_siblings(items: list[pytest.Item]) -> None:
    """Of a test marked siblings(n) some n of its cases, spread evenly, are quick; others slow."""
    families: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("siblings") and not item.get_closest_marker("slow"):
            families.setdefault((item.path, item.name.partition("[")[0]), []).append(item)
    for family in families.values():
        mark = family[0].get_closest_marker("siblings")
        assert mark is not None
        (count,) = mark.args
        quick = {round(i * len(family) / count) for i in range(count)}
        for number, item in enumerate(family):
            if number not in quick:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Names must not differ between processes, and carry the mark of a group: a worker without the
    marks would run two Rays at once. What is imported by now stays: without the garbage collector's
    walks through it a run takes a tenth less time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    for item in session.items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"another name in every process: {item.nodeid}")
    config = session.config
    if "PYTEST_XDIST_WORKER" not in os.environ or not config.getoption("loadgroup", False):
        return
    for item in session.items:
        if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
            raise pytest.UsageError("this pytest-xdist does not keep groups of tests together")


def group_of(item: pytest.Item) -> str | None:
    """The group of a test, None where it may run anywhere."""
    path = item.path.relative_to(TESTS)
    in_ray_s_folder = "cluster" in path.parts and path.stem not in WITHOUT_RAY
    if in_ray_s_folder or item.get_closest_marker("cluster"):
        return "cluster"
    definitions = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    shared = {name for name, found in definitions.items() if found[-1].scope == "module"}
    return path.as_posix() if shared - CHEAP else None


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny diffusers pipelines, one of each kind."""
    from pipelines_on_disk import build_all

    return build_all(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def folders(pipelines: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """The same, with one thread: networks this small would spend their time waiting for a second
    one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield pipelines
    torch.set_num_threads(threads)
