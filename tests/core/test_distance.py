"""Distances against closed forms, the lpips package itself, and the cases in which it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ld3_dist.core import lpips as lpips_module
from ld3_dist.core.comparison import FeatureDistance, unit_channels
from ld3_dist.core.distance import (
    check_distance,
    distance_entry,
    distances,
    extractor_of_distance,
    make_distance,
)
from ld3_dist.core.errors import InputError
from ld3_dist.core.features import Extractor
from ld3_dist.core.lpips import LPIPS, MIN_SIDE


def images(seed: int, n: int = 3, channels: int = 3, side: int = 40) -> Tensor:
    return (
        torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    )


def test_l1_and_l2_are_means_over_a_sample() -> None:
    a, b = (
        torch.zeros(2, 1, 2, 2),
        torch.tensor([[0.0, 1.0, -2.0, 3.0], [2.0, 2.0, 2.0, 2.0]]).view(2, 1, 2, 2),
    )
    assert make_distance("l1")(a, b).tolist() == [1.5, 2.0]
    assert make_distance("l2")(a, b).tolist() == [3.5, 4.0]
    with pytest.raises(ValueError, match="shapes differ"):
        make_distance("l2")(a, b[:1])


def test_features_of_vectors_and_of_maps() -> None:
    vectors = make_distance("feature", extractor=lambda x: x.flatten(1))
    a, b = images(0), images(1)
    assert torch.allclose(vectors(a, b), (a - b).square().flatten(1).mean(1))
    maps = make_distance("feature", extractor=lambda x: [x, x.flatten(1), 2 * x])
    u, v = nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1)
    expected = 2 * (u - v).square().sum(1).mean((1, 2)) + (a - b).square().flatten(1).mean(1)
    assert torch.allclose(maps(a, b), expected, atol=1e-6)
    with pytest.raises(InputError, match="extractor made"):
        make_distance("feature", extractor=lambda x: x.mean())(a, b)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 4, 3), nn.Dropout(0.5)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(self.conv(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).sum(1)


def test_a_model_with_features_is_frozen_and_never_in_training() -> None:
    model = Classifier()
    distance = FeatureDistance(model).train()
    a, b = images(0), images(1)
    assert torch.equal(distance(a, b), distance(a, b))
    assert not any(p.requires_grad for p in distance.parameters())
    assert torch.allclose(distance(a, b), (model.features(a) - model.features(b)).square().mean(1))


@pytest.fixture(scope="module")
def alex() -> LPIPS:
    return LPIPS("alex", random_trunk=True)


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_equals_the_package(net: str) -> None:
    ours = LPIPS(net, random_trunk=True)
    a, b = images(0, side=48), images(1, side=48)
    assert torch.allclose(ours(a, b), ours.model(a, b).flatten(), rtol=1e-5)
    grey = images(2, channels=1)
    assert torch.allclose(ours(grey, -grey), ours.model(grey, -grey).flatten(), rtol=1e-5)
    assert torch.equal(
        ours(a, b), LPIPS(net, random_trunk=True).train()(a, b)
    )  # same weights, no dropout
    assert torch.equal(ours(a, a), torch.zeros(3))


def test_cached_features_give_the_same_distance(alex: LPIPS) -> None:
    a, b = images(0), images(1)
    assert torch.equal(alex.between(alex.features(a), alex.features(b)), alex(a, b))
    order = torch.tensor([2, 0])
    cached = [layer[order] for layer in alex.features(b)]
    assert torch.allclose(alex.between(alex.features(a[order]), cached), alex(a, b)[order])


def test_the_gradient_at_zero_features_is_finite(alex: LPIPS) -> None:
    f = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit_channels(f).sum().backward()
    assert torch.isfinite(f.grad).all()
    for layer in alex.model.net.children():  # a trunk whose features are all zero
        for part in layer.modules():
            if isinstance(part, nn.Conv2d):
                part.bias.data.fill_(-100.0)
    x = images(0).requires_grad_()
    distance = alex(x, images(1))
    distance.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(p.grad is None for p in alex.parameters())


def test_gradients_by_gradcheck() -> None:
    a, b = images(0, n=2, side=4).double().requires_grad_(), images(1, n=2, side=4).double()
    conv = nn.Conv2d(3, 4, 3).double()
    for distance in (
        make_distance("l2"),
        make_distance("feature", extractor=lambda x: [conv(x), x.flatten(1)]),
    ):
        assert torch.autograd.gradcheck(lambda x, d=distance: d(x, b), a)


@pytest.mark.parametrize("net", list(MIN_SIDE))
def test_the_smallest_side_is_what_the_trunk_can_take(net: str) -> None:
    distance = LPIPS(net, random_trunk=True)
    side = MIN_SIDE[net]
    assert torch.isfinite(distance(images(0, 1, side=side), images(1, 1, side=side))).all()
    small = images(0, 1, side=side - 1)
    with pytest.raises(InputError, match=f"at least {side} pixels.*upsample"):
        distance(small, small)
    with pytest.raises(RuntimeError):  # the limit is the trunk's, not ours
        distance.model.net(small)
    distance.upsample = True
    assert distance(images(0, 1, side=8), images(1, 1, side=8)).item() > 0
    with pytest.raises(InputError, match=r"\[B, 1 or 3, H, W\]"):
        distance(images(0, channels=4), images(1, channels=4))


def test_the_trunk_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"squeezenet1_1.*no such file"):
        make_distance("lpips-squeeze")
    whole = torchvision.models.squeezenet1_1(weights=None)
    file = lpips_module.default_trunk("squeeze")
    file.parent.mkdir()
    torch.save(whole.state_dict(), file)
    distance = make_distance("lpips-squeeze")
    scaled = distance.model.scaling_layer(images(0, side=64))  # type: ignore[union-attr, operator]
    last = distance.model.net(scaled)[-1]  # type: ignore[union-attr, operator]
    assert torch.allclose(last, whole.eval().features(scaled), atol=1e-6)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not the weights"):
        make_distance("lpips-squeeze", trunk=file)
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="not the weights"):
        make_distance("lpips-squeeze")


def test_bad_names_and_missing_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean 'lpips-vgg'"):
        make_distance("lpips_vgg")
    with pytest.raises(InputError, match="needs a feature extractor"):
        make_distance("feature")
    import sys

    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match="pip install lpips"):
        make_distance("lpips-alex", random_trunk=True)


def test_entries_tell_what_a_distance_needs() -> None:
    assert [distance_entry(name).space for name in ("l1", "l2")] == ["any", "any"]
    for net, side in MIN_SIDE.items():
        entry = distance_entry(f"lpips-{net}")
        assert (entry.space, entry.min_side, entry.trunk) == ("image", side, net)
        assert "upsample" in entry.options
    assert distance_entry("lpips") == distance_entry("lpips-vgg")
    assert extractor_of_distance("l2") is None
    assert extractor_of_distance("lpips") is None
    assert extractor_of_distance("feature") == "auto"
    assert extractor_of_distance("feature:inception:/weights.pth") == "inception:/weights.pth"
    with pytest.raises(InputError, match="nothing follows l2"):
        extractor_of_distance("l2:identity")


def test_any_extractor_serves_a_feature_distance() -> None:
    a, b = images(0), images(1)
    halves = Extractor("halves", "1", lambda x: x.flatten(1) / 2)
    distance = make_distance("feature:halves", halves)
    assert distance.name == "feature:halves"
    assert torch.allclose(distance(a, b), (a - b).square().flatten(1).mean(1) / 4)
    maps = Extractor("maps", "1", lambda x: x.flatten(1), lambda x: [x, x.flatten(1)])
    assert torch.equal(
        make_distance("feature", maps)(a, b),
        make_distance("feature", extractor=lambda x: [x, x.flatten(1)])(a, b),
    )
    rounded = Extractor("bytes", "1", lambda x: x.round().flatten(1), differentiable=False)
    with pytest.raises(InputError, match=r"features of bytes have no gradient"):
        make_distance("feature", rounded)


OWN = """
import torch
from ld3_dist.core.comparison import Elementwise

def cube(a, b):
    return (a - b).abs().pow(3).flatten(1).mean(1)

def make_l1():
    return Elementwise(1)

def one(a):
    return a

def wrong():
    return 3

def whole(a, b):
    return (a - b).abs().mean()

def flat(a, b):
    return (a - b).detach().abs().flatten(1).mean(1)

def broken(a, b):
    return a @ b

def infinite(a, b):
    return (a - b).flatten(1).mean(1) / 0
"""


def test_a_distance_in_a_user_s_file(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    a, b = images(0), images(1)
    cube = make_distance(f"python:{file}:cube")
    assert torch.allclose(cube(a, b), (a - b).abs().pow(3).flatten(1).mean(1))
    assert cube.name == f"python:{file}:cube"
    with pytest.raises(ValueError, match="shapes differ"):
        cube(a, b[:1])
    assert torch.equal(make_distance(f"python:{file}:make_l1")(a, b), make_distance("l1")(a, b))
    for name in ("cube", "make_l1"):
        check_distance(make_distance(f"python:{file}:{name}"), (3, 4, 4))
    for name, words in [("one", r"takes a; .*\(a, b\) -> \[B\]"), ("wrong", "returned int")]:
        with pytest.raises(InputError, match=words):
            make_distance(f"python:{file}:{name}")
    for name, words in [
        ("whole", r"made \(\) of 2 samples"),
        ("flat", "no gradient with respect to the samples"),
        ("broken", "fails on samples"),
        ("infinite", "not finite"),
    ]:
        with pytest.raises(InputError, match=words):
            check_distance(make_distance(f"python:{file}:{name}"), (3, 4, 5))


def test_a_registered_distance() -> None:
    distances.register("largest", lambda a, b: (a - b).abs().flatten(1).amax(1))
    try:
        a, b = images(0), images(1)
        assert torch.equal(make_distance("largest")(a, b), (a - b).abs().flatten(1).max(1).values)
        with pytest.raises(InputError, match="did you mean 'largest'"):
            make_distance("largets")
    finally:
        del distances._entries["largest"]
