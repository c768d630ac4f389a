"""Knots along trajectories are found once per process for the same network, steps and pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ld3_dist.core.learning.pairs import Pairs
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.models import Model
from ld3_dist.schedule.sampling import in_loss_space
from ld3_dist.schedule.starts import start_knots
from ld3_dist.training_free import SAMPLES


class Counting(torch.nn.Module):
    """The denoiser of a Gaussian with a width of its own; it counts the samples it sees."""

    def __init__(self, width: float, latent: bool = False) -> None:
        super().__init__()
        self.noise, self.shape, self.latent, self.calls = EDM(), (3,), latent, 0
        self.width = torch.nn.Parameter(torch.tensor(width), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls += len(x)
        mean = 0 if condition is None else condition.view(-1, 1).to(x)
        part = self.width**2 / (self.width**2 + t.view(-1, 1) ** 2)
        return mean + part * (x - mean)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.cat([x0, x0], -1) if self.latent else x0


def drawn(seed: int, count: int = 70, classes: int = 0) -> Pairs:
    z = draw_noise(seed, range(count), (3,))
    condition = torch.arange(count) % classes if classes else None
    return Pairs(z, z, condition)


def calls(net: Counting, *given: object) -> int:
    before = net.calls
    start_knots(*given)  # type: ignore[arg-type]
    return net.calls - before


@pytest.mark.parametrize("name", SAMPLES)
def test_the_same_knots_are_found_once(name: str) -> None:
    net = Counting(0.5)
    model, unipc, ddim, heun = Model(net), *map(make_solver, ("unipc-3", "ddim", "heun"))
    first = start_knots(name, model, unipc, 4, drawn(0))
    assert net.calls > 0
    for solver, nfe in ((unipc, 4), (ddim, 4), (heun, 8)):
        assert calls(net, name, model, solver, nfe, drawn(0)) == 0
        assert torch.equal(start_knots(name, model, solver, nfe, drawn(0)), first)
    more = Pairs(*(torch.cat([z, z]) for z in (drawn(0).noise, drawn(0).target)))
    assert calls(net, name, model, unipc, 4, more) == 0  # the first SAMPLES are the same
    for pairs in (drawn(1), None):
        assert calls(net, name, model, ddim, 4, pairs) > 0
    assert calls(net, name, model, ddim, 4, drawn(0, classes=2)) > 0
    assert calls(net, name, model, ddim, 4, drawn(0, classes=3)) > 0
    fresh = start_knots(name, Model(Counting(0.5)), unipc, 4, drawn(0))
    assert torch.equal(fresh, first)


@pytest.mark.parametrize("name", SAMPLES)
def test_findings_serve_other_numbers_of_steps(name: str) -> None:
    """Along the same fine grid: that of 60 steps is longer than the fewest. OptimalSteps' are of
    one number of steps.
    """
    net, ddim = Counting(0.5), make_solver("ddim")
    model = Model(net)
    start_knots(name, model, ddim, 4, drawn(0))
    for nfe, longer in ((5, False), (10, False), (60, True), (3, False)):
        fresh = start_knots(name, Model(Counting(0.5)), ddim, nfe, drawn(0))
        took = calls(net, name, model, ddim, nfe, drawn(0))
        assert (took > 0) == (longer or name == "optimal-steps")
        assert torch.equal(start_knots(name, model, ddim, nfe, drawn(0)), fresh)


def test_other_weights_are_another_network() -> None:
    net = Counting(0.5)
    model = Model(net)
    before = start_knots("gits", model, make_solver("ddim"), 4, drawn(0))
    net.width += 2
    assert calls(net, "gits", Model(net), make_solver("ddim"), 4, drawn(0)) > 0
    assert not torch.equal(
        start_knots("gits", Model(net), make_solver("ddim"), 4, drawn(0)), before
    )


def test_what_is_returned_may_be_changed() -> None:
    model = Model(Counting(0.5))
    start_knots("gits", model, make_solver("ddim"), 4, drawn(0)).zero_()
    assert start_knots("gits", model, make_solver("ddim"), 4, drawn(0))[0] == EDM().t_max


def test_latents_and_images_share_a_network() -> None:
    net = Counting(0.5, latent=True)
    model = Model(net)
    latent = in_loss_space(model, "latent")
    assert latent.denoiser is not net
    start_knots("gits", latent, make_solver("ddim"), 4, drawn(0))
    again = in_loss_space(replace(model), "latent")
    assert calls(net, "gits", again, make_solver("ddim"), 4, drawn(0)) == 0


def test_a_denoiser_without_weak_references_is_asked_each_time() -> None:
    class Bare:
        __slots__ = ("net", "noise", "shape")

        def __init__(self, net: Counting) -> None:
            self.net, self.noise, self.shape = net, net.noise, net.shape

        def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return self.net(x, t, condition)

        def decode(self, x0: Tensor) -> Tensor:
            return x0

    net = Counting(0.5)
    model = Model(Bare(net), id="bare", version="1")
    assert calls(net, "gits", model, make_solver("ddim"), 4, drawn(0)) > 0
    assert calls(net, "gits", model, make_solver("ddim"), 4, drawn(0)) > 0
