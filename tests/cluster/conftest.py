"""Finished sweeps, made once for all tests of the cluster."""

from __future__ import annotations

import pytest
from finished_sweeps import Contest, Finished, make_contest, make_finished


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny experiment, run as a user runs it."""
    return make_finished(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="session")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Contest:
    """The tiny experiment on which two drivers met, and that a third finished."""
    return make_contest(tmp_path_factory.mktemp("contest"))
