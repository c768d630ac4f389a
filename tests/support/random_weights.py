"""Weights files of the networks of metrics and distances, with random numbers: the formats, without
a download.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def write_inception(file: Path) -> Path:
    """Inception-v3 as torch-fidelity wants it (about 90 MB)."""
    network = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3"
    ).FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        made = network("random", ["2048"], feature_extractor_weights_path="none")
    torch.save(made.state_dict(), file)
    return file


def write_trunk(file: Path, net: str) -> Path:
    """The convolutions of a torchvision classifier, under the names they have in the published
    files.
    """
    models = pytest.importorskip("torchvision.models")
    build = {"alex": models.alexnet, "vgg": models.vgg16, "squeeze": models.squeezenet1_1}[net]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = build(weights=None).features.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in tensors.items()}, file)
    return file
