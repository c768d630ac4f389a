"""Inception features through torch-fidelity: random weights of the right shape, written here; equal
to the library.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import write_inception

from ld3_dist.core.errors import InputError
from ld3_dist.metrics.extractors import open_extractor, read_reference
from ld3_dist.metrics.inception import inception_score, open_inception, to_bytes
from ld3_dist.models import open_model
from ld3_dist.models.weights import sha256_of

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A weights file as the library wants it, with random numbers (about 90 MB)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    file = write_inception(tmp_path_factory.mktemp("inception") / "weights.pth")
    yield file
    file.unlink()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_features_and_scores_are_the_library_s(weights: Path, images: torch.Tensor) -> None:
    extractor = open_inception(str(weights))
    assert extractor.hash == sha256_of(weights)
    library = fidelity.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(weights))
    features, logits = library(((images + 1) * 127.5).round().to(torch.uint8))
    found = extractor.features(images)
    assert found.shape == (3, 2048)
    # one step of 256 apart where rounding and truncation after a half step disagree
    torch.testing.assert_close(found, features, rtol=0.02, atol=0.02 * features.abs().mean().item())
    torch.testing.assert_close(found, library(to_bytes(images))[0])
    assert extractor.class_scores is not None
    exact = extractor.class_scores(library(to_bytes(images))[0])
    torch.testing.assert_close(exact.float(), library(to_bytes(images))[1], rtol=1e-3, atol=1e-4)
    assert logits.shape == exact.shape
    gray = images[:1, :1]
    torch.testing.assert_close(
        extractor.features(gray), extractor.features(gray.expand(-1, 3, -1, -1))
    )


def test_bytes_are_those_of_published_statistics() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 127 / 127.5, 1.0, 2.0]).view(1, 1, 1, 6)
    assert to_bytes(x)[0, :, 0].tolist() == [[0, 0, 128, 255, 255, 255]] * 3
    with pytest.raises(InputError, match="1 or 3"):
        to_bytes(torch.zeros(2, 4, 8, 8))


def test_inception_score_has_known_values() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    assert inception_score(torch.zeros(40, 7)) == pytest.approx(1)  # no sample says anything
    sure = 1e3 * torch.eye(5).repeat(20, 1)
    assert inception_score(sure) == pytest.approx(
        5
    )  # every part holds all five classes, each with certainty
    logits = 3 * torch.randn(100, 9, generator=torch.Generator().manual_seed(0))
    expected = isc_features_to_metric(logits, splits=10, shuffle=False)["inception_score_mean"]
    assert inception_score(logits) == pytest.approx(expected)
    assert inception_score(logits[:1]) == pytest.approx(1)


def test_reference_statistics_of_edm(tmp_path: Path) -> None:
    file = tmp_path / "ref.npz"
    np.savez(file, mu=np.arange(3.0), sigma=np.eye(3))
    assert read_reference(str(file)).moments.mean.tolist() == [0, 1, 2]
    np.savez(file, mean=np.arange(3.0))
    with pytest.raises(InputError, match=r"ref\.npz.*mu"):
        read_reference(str(file))


def test_files_that_are_none(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = open_model("digits")

    def refused(file: Path) -> str:
        with pytest.raises(InputError) as error:
            open_extractor(f"inception:{file}", digits)
        assert str(file) in str(error.value)
        return str(error.value)

    assert "no such file" in refused(tmp_path / "nothing.pth")
    file = tmp_path / "wrong.pth"
    file.write_bytes(b"<html>not found</html>")
    assert "not those of Inception-v3" in refused(file)
    file.write_bytes(weights.read_bytes()[:1000])
    assert "not those of Inception-v3" in refused(file)
    torch.save({"features.0.weight": torch.zeros(3)}, file)
    assert "fc.weight" in refused(file)
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, file)
    assert "Missing key" in refused(file)
    canary = tmp_path / "canary"
    file.write_bytes(pickle.dumps(Evil(canary)))
    assert "not those of Inception-v3" in refused(file)
    assert not canary.exists()
    monkeypatch.setitem(__import__("sys").modules, fidelity.__name__, None)
    with pytest.raises(InputError, match=r"ld3_dist\[metrics\]"):
        open_inception(str(weights))


class Evil:
    """Makes a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)
