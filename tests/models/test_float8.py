"""Weights in float8: their size, their rounding, and gradients through them."""

from __future__ import annotations

import pytest
import tiny_pipelines as tiny
import torch
from torch import nn

from ld3_dist.core.sample import draw_noise
from ld3_dist.models import ModelOptions, open_model
from ld3_dist.models.float8 import keep_in_float8


def held(net: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*net.parameters(), *net.buffers()])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 64), lambda: nn.Conv2d(8, 32, 3)])
def test_weights_are_rounded_to_three_bits_of_mantissa(make, scale: float) -> None:
    layer = make()
    with torch.no_grad():
        layer.weight.mul_(scale)
    exact = layer.weight.detach().clone()
    keep_in_float8(layer)
    error = (layer.weight - exact).abs()
    least = exact.abs().max() / 448 * 2**-10  # half of the smallest number beside 0
    assert bool((error <= torch.maximum(exact.abs() / 16, least) * 1.001).all())
    assert float(error.max()) > 0


def test_weights_take_a_quarter_of_the_memory_of_float32() -> None:
    net = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    before = held(net)
    assert held(keep_in_float8(net)) < 0.26 * before


def test_zeros_stay_zeros() -> None:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    assert not keep_in_float8(layer).weight.any()


def test_a_model_in_float8_is_near_the_exact_one_and_has_gradients() -> None:
    exact = open_model("digits")
    rounded = open_model("digits", ModelOptions(dtype="float8"))
    assert rounded.hash == exact.hash
    x = 80 * draw_noise(0, range(16), exact.denoiser.shape).double()
    condition = exact.draw_condition(0, range(16))
    time = torch.full((16,), 80.0, dtype=torch.float64)
    found = []
    for model in (exact, rounded):
        given = x.clone().requires_grad_()
        out = model.denoiser(given, time, condition)
        (gradient,) = torch.autograd.grad(out.square().sum(), given)
        found.append((out.detach(), gradient))
    for a, b in zip(*found, strict=True):
        assert 0 < float((a - b).norm() / a.norm()) < 0.2
        assert bool(torch.isfinite(b).all())


def test_a_pipelines_network_is_kept_in_float8(tmp_path) -> None:
    pytest.importorskip("diffusers")
    options = ModelOptions(dtype="float8", conditional=False)
    model = open_model(f"diffusers:{tiny.text(tmp_path)}", options)
    assert isinstance(model.denoiser, nn.Module)
    assert torch.float8_e4m3fn in {p.dtype for p in model.denoiser.parameters()}
