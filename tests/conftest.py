"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from edm_pickles import format_modules  # noqa: F401  a fixture


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
