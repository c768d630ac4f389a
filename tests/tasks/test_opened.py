"""What stays open in a worker: models beside each other where there is room, else one."""

from __future__ import annotations

import weakref

import pytest

from ld3_dist.experiment.sections import ModelSettings
from ld3_dist.tasks import opened
from ld3_dist.tasks.opened import model_of


@pytest.fixture(autouse=True)
def nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "_OPEN", {})


@pytest.mark.parametrize(("total", "stays"), [(2**40, True), (2**20, False)])
def test_a_large_model_goes_before_the_next_is_opened(
    total: int, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`digits` takes more than a tenth of 1 MiB, and nothing of 1 TiB."""
    monkeypatch.setattr(opened, "total_memory", lambda device: total)
    first = weakref.ref(model_of(ModelSettings(model="digits")).denoiser)
    assert model_of(ModelSettings(model="digits")).denoiser is first()  # it is not opened again
    model_of(ModelSettings(model="digits", guidance=2.0))
    assert (first() is not None) == stays


def test_a_driver_keeps_all_models_that_it_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "total_memory", lambda device: 1)
    first = weakref.ref(model_of(ModelSettings(model="digits"), "cpu").denoiser)
    model_of(ModelSettings(model="digits", guidance=2.0), "cpu")
    assert first() is not None
