"""What samples of the fashion model are compared with: the classifier's features of the 10,000 test images.

mean [F] and covariance [F, F] in float64, of the features before rounding, and the features [10000, F] themselves in
half precision, for kernel distance, precision and recall. The data itself is not needed to score samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..weights import read_tensors, save_tensors, sha256_of
from .classifier import CLASSIFIER_FILE, in_parts, load_fashion_classifier
from .data import FashionData, scale

REFERENCE_FILE = Path(__file__).with_name("reference.safetensors")
REFERENCE_KIND = "ld3_dist fashion reference 1"
REMEDY = "reinstall ld3_dist, or make it anew with `python -m ld3_dist.models.fashion statistics`"


@dataclass(frozen=True, eq=False)
class FashionReference:
    """Mean [F] and covariance [F, F] float64, features [N, F] float32; classifier: hash of the classifier's file."""

    mean: Tensor
    covariance: Tensor
    features: Tensor
    classifier: str


def load_fashion_reference(file: Path | None = None) -> FashionReference:
    """The packaged reference (or one in `file`).

    Raises InputError when the file is missing, truncated or of another kind.
    """
    file = REFERENCE_FILE if file is None else Path(file)
    tensors, config = read_tensors(file, REFERENCE_KIND, REMEDY)
    return FashionReference(
        tensors["mean"],
        tensors["covariance"],
        tensors["features"].float(),
        config["classifier_sha256"],
    )


def write_reference(
    file: Path, data: FashionData, classifier_file: Path = CLASSIFIER_FILE, device: str = "cpu"
) -> None:
    """Compute the test images' features and write the reference file."""
    classifier = load_fashion_classifier(device, file=classifier_file)
    features = in_parts(classifier.features, scale(data.test_images.to(device))).double()
    tensors = {
        "mean": features.mean(0),
        "covariance": features.T.cov(),
        "features": features.to(torch.float16),
    }
    config = {"classifier_sha256": sha256_of(classifier_file), "data_sha256": data.sha256}
    save_tensors(file, tensors, REFERENCE_KIND, config)
