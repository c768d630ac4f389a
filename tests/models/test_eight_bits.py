"""Weights in eight bits: their size, their rounding, and gradients through them."""

from __future__ import annotations

import pytest
import tiny_pipelines as tiny
import torch
from torch import nn

from ld3_dist.core.sample import draw_noise
from ld3_dist.models import ModelOptions, open_model
from ld3_dist.models.eight_bits import Kept, keep_in_eight_bits

KINDS: tuple[Kept, ...] = ("float8", "int8")


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
    keep_in_eight_bits(layer, "float8")
    error = (layer.weight - exact).abs()
    least = exact.abs().max() / 448 * 2**-10  # half of the smallest number beside 0
    assert bool((error <= torch.maximum(exact.abs() / 16, least) * 1.001).all())
    assert float(error.max()) > 0


@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 64), lambda: nn.Conv2d(8, 32, 3)])
def test_whole_numbers_have_a_scale_for_each_output(make) -> None:
    layer = make()
    with torch.no_grad():
        layer.weight.mul_(
            torch.logspace(-6, 6, len(layer.weight)).view(-1, *[1] * (layer.weight.ndim - 1))
        )
        layer.weight[3] = 0
    exact = layer.weight.detach().clone()
    keep_in_eight_bits(layer, "int8")
    half = exact.abs().flatten(1).amax(1) / 127 / 2
    error = (layer.weight - exact).abs().flatten(1).amax(1)
    assert bool((error <= half * 1.0001).all())
    assert bool((error[half > 0] > half[half > 0] / 2).all())
    assert not layer.weight[3].any()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_take_a_quarter_of_the_memory_of_float32(kind: Kept) -> None:
    net = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    before = held(net)
    assert held(keep_in_eight_bits(net, kind)) < 0.26 * before


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind: Kept) -> None:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    assert not keep_in_eight_bits(layer, kind).weight.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_eight_bits_is_near_the_exact_one_and_has_gradients(kind: Kept) -> None:
    exact = open_model("digits")
    rounded = open_model("digits", ModelOptions(dtype=kind))
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipelines_network_is_kept_in_eight_bits(tmp_path, kind: Kept) -> None:
    pytest.importorskip("diffusers")
    options = ModelOptions(dtype=kind, conditional=False)
    model = open_model(f"diffusers:{tiny.text(tmp_path)}", options)
    assert isinstance(model.denoiser, nn.Module)
    kept = {"float8": torch.float8_e4m3fn, "int8": torch.int8}[kind]
    assert kept in {p.dtype for p in model.denoiser.parameters()}
