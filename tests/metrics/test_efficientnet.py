"""EfficientNet-Lite0 on its real weights: its authors' values, photographs, and its gradients."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ld3_dist as ld3
from ld3_dist.core.distance import distance_entry, extractor_of_distance, make_distance
from ld3_dist.core.errors import InputError
from ld3_dist.core.features import Extractor
from ld3_dist.core.installed import installed_file
from ld3_dist.metrics import efficientnet
from ld3_dist.metrics.efficientnet import FILE, NAME, PACKAGE, load_efficientnet, open_efficientnet
from ld3_dist.metrics.extractors import open_extractor
from ld3_dist.schedule.distances import open_distance


def installed() -> bool:
    try:
        distribution(PACKAGE)
    except PackageNotFoundError:
        return False
    return True


needs_weights = pytest.mark.skipif(not installed(), reason=f"{PACKAGE} is not installed")


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return open_efficientnet()


def pattern(side: int) -> Tensor:
    """A smooth image [1, 3, side, side] that any program can make."""
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([torch.sin(3 * x), torch.cos(4 * y), x * y])[None]


@needs_weights
def test_the_values_of_another_program(extractor: Extractor) -> None:
    """From the package efficientnet-lite-pytorch 0.1.0 with these weights and 224 pixels a side."""
    features = extractor.features(pattern(224))[0]
    assert features.shape == (1280,)
    values, places = features.topk(5)
    assert places.tolist() == [71, 897, 425, 113, 989]
    known = torch.tensor([5.250178, 5.046057, 4.017576, 4.005603, 3.933082])
    torch.testing.assert_close(values, known, rtol=1e-4, atol=0)
    torch.testing.assert_close(features.norm(), torch.tensor(16.790287), rtol=1e-4, atol=0)


@needs_weights
@pytest.mark.parametrize(("name", "label"), [("china.jpg", 698), ("flower.jpg", 985)])
def test_photographs_are_recognised(extractor: Extractor, name: str, label: int) -> None:
    """ImageNet's class 698 is a palace, 985 a daisy."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = torch.from_numpy(datasets.load_sample_image(name).copy()).permute(2, 0, 1).float()
    side = min(pixels.shape[1:])
    top, left = ((n - side) // 2 for n in pixels.shape[1:])
    image = pixels[None, :, top : top + side, left : left + side] / 127.5 - 1
    weights = torch.load(installed_file(PACKAGE, FILE, "", ""), weights_only=True)
    logits = extractor.features(image) @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert int(logits.argmax()) == label


@needs_weights
def test_the_distance_is_zero_on_equal_images_and_grows_with_noise(extractor: Extractor) -> None:
    distance, a = make_distance(NAME, extractor), pattern(48)
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    found = [float(distance(a, a + level * noise)) for level in (0.0, 0.05, 0.1, 0.2, 0.4)]
    assert found[0] == 0
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    assert distance.name == NAME


@needs_weights
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_finite(extractor: Extractor, channels: int) -> None:
    distance = make_distance(NAME, extractor)
    for image in (torch.full((2, channels, 28, 28), -1.0), pattern(28)[:, :channels]):
        x = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(x, torch.zeros_like(x)).sum(), x)
        assert torch.isfinite(gradient).all()
        assert bool((gradient != 0).any())
    x = pattern(28)[:, :channels].requires_grad_()
    (gradient,) = torch.autograd.grad(extractor.features(x).sum(), x)
    assert torch.isfinite(gradient).all()


@needs_weights
def test_by_name_for_a_model() -> None:
    model = ld3.load_model("digits")
    found = open_distance(NAME, model, "cpu")
    other = open_distance(f"feature:{NAME}", model, "cpu")
    a, b = ld3.teach(model, n=2, teacher="ddim/2/karras").target.split(1)
    assert torch.equal(found(a, b), other(a, b))
    assert float(found(a, b)) > 0
    opened = open_extractor(NAME, model)
    assert opened is not None
    assert opened.name == NAME
    assert opened.class_scores is None  # no Inception score of another network


def test_what_is_known_before_it_is_opened() -> None:
    entry = distance_entry(NAME)
    assert (entry.space, entry.extractor) == ("image", True)
    assert extractor_of_distance(NAME) == NAME
    assert extractor_of_distance("feature:identity") == "identity"
    with pytest.raises(InputError, match=f"nothing follows {NAME}"):
        distance_entry(f"{NAME}:identity")
    with pytest.raises(InputError, match=f"nothing follows {NAME}"):
        open_extractor(f"{NAME}:x", ld3.load_model("digits"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "PACKAGE", "a-package-that-nobody-has")
    wanted = rf"{NAME} features.*a-package-that-nobody-has.*ld3_dist\[features\]"
    with pytest.raises(InputError, match=wanted):
        open_efficientnet()


def test_files_of_another_network(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"_conv_stem.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=f"{NAME} {file}: of another network.*reinstall"):
        load_efficientnet(file)
    file.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        load_efficientnet(file)


@needs_weights
def test_images_of_other_channels_are_refused(extractor: Extractor) -> None:
    with pytest.raises(InputError, match=r"images \[B, 1 or 3, H, W\], got \(1, 2, 8, 8\)"):
        extractor.features(torch.zeros(1, 2, 8, 8))
