"""Everything on the way from pairs to a schedule runs on a device without float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from no_float64 import DEVICE, Emulated, Network, OnDevice, on_device

from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.distance import make_distance
from ld3_dist.core.learning.pairs import Pairs
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise
from ld3_dist.models import Model
from ld3_dist.schedule.evaluating import measure
from ld3_dist.schedule.learning import learn
from ld3_dist.schedule.sampling import make_samples


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10**9)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)
    with Emulated():
        yield DEVICE


def test_the_emulation_refuses_float64(device: torch.device) -> None:
    x = torch.ones(2).to(device)
    assert isinstance(x * 2, OnDevice)
    assert (x * 2).device == device
    assert not isinstance(x.cpu(), OnDevice)
    assert x.cpu().double().dtype == torch.float64
    for wide in (
        x.double,
        lambda: x.to(torch.float64),
        lambda: x.to(torch.ones(2).double()),
        lambda: torch.ones(2).double().to(device),
        lambda: torch.zeros(2, dtype=torch.float64, device=device),
    ):
        with pytest.raises(RuntimeError, match="no float64"):
            wide()


@pytest.mark.parametrize("procedure", ["default", "paper", "curve"])
@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_learning_measuring_and_sampling(
    device: torch.device, procedure: str, gamma: float
) -> None:
    model = Model(NetworkDenoiser(Network(4), EDM(), (4,), "data"), image_shape=(4,))
    target = torch.tanh(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)))
    pairs = Pairs(on_device(draw_noise(0, range(12), (4,))), on_device(target))
    schedule = learn(
        model, "unipc-3", 4, pairs, starts=["karras"], epochs=2, procedure=procedure, gamma=gamma
    )
    assert schedule.losses["valid_loss"] is not None
    made = make_samples(model, schedule.tableau, pairs.noise)
    assert isinstance(made, OnDevice)
    found = measure(model, schedule.tableau, pairs, make_distance("l2"))
    assert found.losses.dtype == torch.float64
    assert not isinstance(found.losses, OnDevice)
