"""A network that a schedule cannot be learned for is named at opening, with the property it lacks.

Every fault is written as a user would write it, and beside each stands the sound network.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import EDM, FlowMatching, VPCosine, VPDiscrete, VPLinear
from ld3_dist.models import Model, draw_class, open_model
from ld3_dist.models.probe import LARGE, Probe, probe


class Sound(nn.Module):
    """A small network of x [B, 3, 4, 4] and a time in steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        hidden = torch.tanh(self.enter(x)) * (1 + (time / 300).sin())[:, None, None, None]
        return self.leave(self.between(hidden))

    def between(self, hidden: Tensor) -> Tensor:
        return hidden


class NoGrad(Sound):
    @torch.no_grad()
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, time)


class Detached(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x.detach(), time)


class Numpy(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return torch.from_numpy(numpy.tanh(x.detach().numpy()))


class HalfDetached(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return x + 2 * super().forward(3 * x.detach(), time)


class Rounded(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, time.long())


class Steps(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, time.round())


class Dropping(Sound):
    def between(self, hidden: Tensor) -> Tensor:
        return nn.functional.dropout(hidden, 0.1, training=True)


class BatchStatistics(Sound):
    def between(self, hidden: Tensor) -> Tensor:
        return hidden - hidden.mean(0, keepdim=True)


class Sick(Sound):
    def between(self, hidden: Tensor) -> Tensor:
        return hidden / 0


class Double(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, time).double()


class OtherArguments(Sound):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, time)


class Nothing(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Any:
        return {"prediction": super().forward(x, time)}


class Timeless(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return torch.tanh(self.leave(self.enter(x)))


class Bent(Sound):
    """Steeper in time within 1 % of t = 1, as a network of rectifiers may be by chance."""

    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        rise = time + 0.0061 * ((time - 1) / 0.0125).tanh()
        return self.leave(torch.tanh(self.enter(x))) * rise[:, None, None, None]


STEPS_OF_1000 = VPDiscrete((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))


def model(net: nn.Module, **more: Any) -> Model:
    noise = STEPS_OF_1000
    return Model(NetworkDenoiser(net, noise, (3, 4, 4), "noise", noise.network_time), **more)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (NoGrad, "no gradient with respect to x"),
        (Detached, "no gradient with respect to x"),
        (Numpy, "no gradient with respect to x"),
        (HalfDetached, "a wrong one"),
        (Dropping, "two calls on the same samples"),
        (BatchStatistics, "depends on the others of its batch"),
        (Sick, "not finite at t = "),
        (Double, "returned torch.float64"),
        (OtherArguments, "net(x, time [B], condition)"),
        (Nothing, "returned dict"),
    ],
)
def test_a_network_that_nothing_can_be_learned_for(net: type[Sound], words: str) -> None:
    with pytest.raises(InputError) as error:
        probe(model(net(), id="mine"))
    assert words in str(error.value)
    assert "'mine'" in str(error.value)
    assert probe(model(Sound())) == Probe(called=True, time_gradient=True)


@pytest.mark.parametrize("net", [Rounded, Steps])
def test_a_time_without_gradient_is_a_warning(
    net: type[Sound], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = model(net()).probed()
    assert not found.time_gradient
    assert "network times stay" in caplog.text
    assert model(Sound()).probed().time_gradient


def test_differences_over_a_bend_do_not_belie_a_gradient() -> None:
    """The slope at t = 1 is 1.49; differences of two steps agree on 1.28 and 1.14."""
    denoiser = NetworkDenoiser(Bent(), EDM(), (3, 4, 4), "data")
    assert Model(denoiser).probed().time_gradient


def test_a_network_without_time_has_its_gradient() -> None:
    assert model(Timeless()).probed().time_gradient


class Trained(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.3)

    def between(self, hidden: Tensor) -> Tensor:
        return self.drop(self.norm(hidden))


def test_a_network_left_in_training_mode_is_told_so() -> None:
    opened = model(Trained())
    assert opened.probed().probe is not None
    opened.denoiser.train()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"call \.eval\(\)"):
        probe(opened)


@dataclass(frozen=True)
class Own:
    """A denoiser of a user's own, without NetworkDenoiser; `detached` cuts the network's input."""

    net: Any
    cut: str = ""
    noise: VPLinear = VPLinear()  # noqa: RUF009, it is frozen
    shape: tuple[int, ...] = (3, 4, 4)

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        alpha, sigma = (f(t)[:, None, None, None] for f in (self.noise.alpha, self.noise.sigma))
        given = 2 * x.detach() if self.cut == "x" else 2 * x
        time = (999 * t).long() if self.cut == "t" else 999 * t
        out = (x - sigma * 3 * self.net(given, time)) / alpha
        return out.detach() if self.cut == "all" else out

    def decode(self, x0: Tensor) -> Tensor:
        return x0


def test_a_denoiser_of_one_s_own_is_looked_at_too() -> None:
    assert probe(Model(Own(Sound()))) == Probe(called=True, time_gradient=True)
    for cut in ("x", "all"):
        with pytest.raises(InputError, match="no gradient with respect to x"):
            probe(Model(Own(Sound(), cut)))
    assert not probe(Model(Own(Sound(), "t"))).time_gradient


@pytest.mark.parametrize("noise", [EDM(), FlowMatching(), VPCosine(), VPLinear()])
@pytest.mark.parametrize("prediction", ["data", "noise", "v", "velocity", "edm"])
def test_sound_networks_pass_whatever_they_predict(noise: Any, prediction: str) -> None:
    denoiser = NetworkDenoiser(Sound(), noise, (3, 4, 4), prediction)
    assert probe(Model(denoiser)) == Probe(called=True, time_gradient=True)


@pytest.mark.parametrize(
    "spec",
    [
        "analytic:gaussian?shape=3x4x4&std=0",
        "analytic:random-mixture?shape=1x28x28&components=40&std=0.01",
        "analytic:heavy-tails?shape=2",
        "analytic:mixture-1d?noise=flow",
        "digits",
    ],
)
def test_families_pass(spec: str) -> None:
    """Also distributions whose denoiser is flat, or turns sharply."""
    assert open_model(spec).probe == Probe(called=True, time_gradient=True)


def large(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, list[int]]:
    """A model as if it were too large to be called twice, and how many samples each call had."""
    from ld3_dist.models import probe as module

    assert LARGE > 1000
    monkeypatch.setattr(module, "LARGE", 0)
    calls: list[int] = []
    net.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    return model(net), calls


@pytest.mark.parametrize("net", [NoGrad, Detached, Numpy, Dropping, Sick])
def test_a_large_network_is_called_once_and_its_faults_are_seen(
    net: type[Sound], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, calls = large(Sound(), monkeypatch)
    assert probe(opened) == Probe(called=True, time_gradient=True)
    assert calls == [2]
    faulty, _ = large(net(), monkeypatch)
    with pytest.raises(InputError):
        probe(faulty)
    rounded, _ = large(Rounded(), monkeypatch)
    assert not probe(rounded).time_gradient


def test_networks_without_data_and_the_largest_are_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ld3_dist.models import probe as module

    opened, calls = large(Sound(), monkeypatch)
    monkeypatch.setattr(module, "LARGEST_ON_CPU", 0)
    assert probe(opened) == Probe(called=False)
    monkeypatch.undo()
    opened.denoiser.to("meta")  # type: ignore[attr-defined]
    assert probe(opened) == Probe(called=False)
    assert calls == []
    assert opened.time_gradient


def test_the_probe_leaves_the_generator_and_the_hooks_alone() -> None:
    net = Sound()
    opened = model(net)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    probe(opened)
    assert torch.equal(torch.rand(3), expected)
    assert not net._forward_hooks
    assert all(p.grad is None for p in net.parameters())


class Tuple(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Any:
        return (super().forward(x, time),)


@dataclass
class Output:
    sample: Tensor


class Dataclass(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Any:
        return Output(super().forward(x, time))


class LearnedVariance(Sound):
    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Any:
        return torch.cat([super().forward(x, time), 100 * x], 1)


@pytest.mark.parametrize("net", [Tuple, Dataclass, LearnedVariance])
def test_outputs_of_the_field_are_understood(net: type[Sound]) -> None:
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([0.2, 0.7])
    torch.testing.assert_close(model(net()).denoiser(x, t), model(Sound()).denoiser(x, t))
    assert model(net()).probed().time_gradient


def test_conditions_reach_the_network() -> None:
    class Labelled(Sound):
        def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
            return super().forward(x, time) + condition[:, None, None, None].to(x)

    labelled = model(Labelled(), conditioning="class", draw_condition=draw_class(range(3)))
    assert labelled.probed().time_gradient
    with pytest.raises(InputError, match="condition"):
        probe(model(Labelled()))
