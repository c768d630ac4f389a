"""Shift-tolerant LPIPS on its real weights, against values of its authors' own code."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ld3_dist.core import st_lpips
from ld3_dist.core.comparison import enlarged
from ld3_dist.core.distance import check_distance, distance_entry, make_distance
from ld3_dist.core.errors import InputError
from ld3_dist.core.st_lpips import PACKAGE, WIDTHS, Halved, ShiftTolerantLPIPS


def installed() -> bool:
    try:
        distribution(PACKAGE)
    except PackageNotFoundError:
        return False
    return True


needs_weights = pytest.mark.skipif(not installed(), reason=f"{PACKAGE} is not installed")
BOTH = pytest.mark.parametrize("net", WIDTHS)


@pytest.fixture(scope="module")
def made() -> dict[str, ShiftTolerantLPIPS]:
    return {net: ShiftTolerantLPIPS(net) for net in WIDTHS}


def pattern(height: int = 72, width: int = 64) -> Tensor:
    """A smooth image [1, 3, H, W] that any program can make."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.sin(3 * x), torch.cos(4 * y), x * y])[None]


@needs_weights
@pytest.mark.parametrize(("net", "value"), [("alex", 0.0257234), ("vgg", 0.1057207)])
def test_the_value_of_the_authors_code(
    made: dict[str, ShiftTolerantLPIPS], net: str, value: float
) -> None:
    """`stlpips.LPIPS(net=net, variant="shift_tolerant")` of stlpips-pytorch 0.0.2 gives them."""
    a = pattern()
    found = made[net](a, 0.8 * a.roll(3, 3))
    torch.testing.assert_close(found, torch.tensor([value]), rtol=2e-5, atol=0)


@needs_weights
@BOTH
def test_zero_on_equal_images_growing_with_noise(
    made: dict[str, ShiftTolerantLPIPS], net: str
) -> None:
    distance, a = made[net], pattern(40, 32)
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    found = [float(distance(a, a + level * noise)) for level in (0.0, 0.05, 0.1, 0.2, 0.4)]
    assert found[0] == 0
    assert found == sorted(found)
    assert len(set(found)) == len(found)


@needs_weights
@BOTH
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_finite_also_where_features_vanish(
    made: dict[str, ShiftTolerantLPIPS], net: str, channels: int
) -> None:
    check_distance(made[net], (channels, 28, 28))
    for image in (torch.zeros(1, channels, 28, 28), torch.full((1, channels, 28, 28), -1.0)):
        image.requires_grad_()
        (gradient,) = torch.autograd.grad(made[net](image, torch.zeros_like(image)).sum(), image)
        assert torch.isfinite(gradient).all()


@needs_weights
def test_a_shift_moves_it_less_than_lpips(made: dict[str, ShiftTolerantLPIPS]) -> None:
    """What it is for: for the same trunk and weights, without its blur a shift counts for more."""
    distance, a = (
        made["alex"],
        torch.nn.functional.interpolate(
            torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1,
            scale_factor=4,
        ),
    )
    shifted, other = a.roll(1, 3), a.roll(1, 0)
    tolerant = distance(a, shifted).mean() / distance(a, other).mean()
    blurs = [layer for layer in distance.trunk if isinstance(layer, Halved)]
    kept = [blur.filt.clone() for blur in blurs]
    try:
        for blur in blurs:
            blur.filt.zero_()[:, :, 1, 1] = 1  # every second position, and nothing else
        plain = distance(a, shifted).mean() / distance(a, other).mean()
    finally:
        for blur, filt in zip(blurs, kept, strict=True):
            blur.filt.copy_(filt)
    assert tolerant < plain


@needs_weights
def test_small_images_are_enlarged_and_grey_ones_taken(
    made: dict[str, ShiftTolerantLPIPS],
) -> None:
    a, b = pattern(28, 28)[:, :1], pattern(28, 28)[:, 1:2]
    grey = made["alex"](a, b)
    coloured = [x.expand(-1, 3, -1, -1) for x in (a, b)]
    torch.testing.assert_close(grey, made["alex"](*coloured))
    large = [enlarged(x, 64) for x in coloured]
    torch.testing.assert_close(grey, made["alex"](*large))
    assert large[0].shape == (1, 3, 64, 64)
    assert enlarged(torch.zeros(1, 1, 20, 40), 64).shape == (1, 1, 64, 128)
    with pytest.raises(InputError, match="compares images"):
        made["alex"](torch.zeros(2, 4), torch.zeros(2, 4))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st_lpips, "PACKAGE", "a-package-that-nobody-has")
    wanted = r"st-lpips-vgg.*a-package-that-nobody-has.*ld3_dist\[features\]"
    with pytest.raises(InputError, match=wanted):
        make_distance("st-lpips-vgg")


def test_files_that_are_damaged_or_of_another_network(tmp_path: Path) -> None:
    damaged, other, list_ = (tmp_path / name for name in ("damaged.pth", "other.pth", "list.pth"))
    damaged.write_bytes(b"PK\x03\x04 no archive")
    torch.save({"net.slice1.0.weight": torch.zeros(2, 3, 1, 1)}, other)
    torch.save([1, 2], list_)
    for file, reason in ((damaged, "cannot be read"), (other, "another network"), (list_, "table")):
        with pytest.raises(InputError, match=f"st-lpips-alex {file}.*{reason}"):
            ShiftTolerantLPIPS("alex", file)
    with pytest.raises(InputError, match="alex, vgg"):
        ShiftTolerantLPIPS("squeeze")


def test_the_release_without_the_file_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st_lpips, "PACKAGE", "torch")
    monkeypatch.setattr(st_lpips, "FILE", "torch/weights/of_{net}.pth")
    with pytest.raises(InputError, match=r"of_alex\.pth is not there.*reinstall"):
        ShiftTolerantLPIPS("alex")


def test_known_before_it_is_made() -> None:
    for net in WIDTHS:
        entry = distance_entry(f"st-lpips-{net}")
        assert (entry.space, entry.extractor, entry.min_side) == ("image", False, 1)
    with pytest.raises(InputError, match="nothing follows st-lpips-alex"):
        distance_entry("st-lpips-alex:inception")
