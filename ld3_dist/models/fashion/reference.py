"""The reference of the fashion model's samples: features of the 10,000 test images.

    mean [F], covariance [F, F]    float64, of the features before they are rounded
    features [10000, F]            half precision, for kernel distance, precision and recall

The images themselves are not needed to score samples.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...core.errors import InputError
from ...core.features import FeatureMoments, Reference
from ..embedded.classifier import in_parts
from ..weights import entry, read_tensors, save_tensors, sha256_of
from .classifier import CLASSIFIER
from .data import FashionData, scale

REFERENCE_FILE = Path(__file__).with_name("reference.safetensors")
REFERENCE_KIND = "ld3_dist fashion reference 1"
REMEDY = "reinstall ld3_dist, or make it anew with `python -m ld3_dist.models.fashion statistics`"


def load_fashion_reference(
    file: Path | None = None, classifier_file: Path = CLASSIFIER.file
) -> Reference:
    """The packaged statistics (or those in `file`), on the CPU.

    Raises InputError when the file is missing, truncated, of another kind, or made with another
    classifier than the one in `classifier_file`.
    """
    file = REFERENCE_FILE if file is None else Path(file)
    tensors, config = read_tensors(file, REFERENCE_KIND, REMEDY)
    for name in ("mean", "covariance", "features"):
        if name not in tensors:
            raise InputError(f"{file}: tensor {name!r} is missing; {REMEDY}")
    if entry(config, "classifier_sha256", str, file, REMEDY) != sha256_of(classifier_file):
        raise InputError(f"{file}: made with another classifier than {classifier_file}; {REMEDY}")
    try:
        moments = FeatureMoments(tensors["mean"], tensors["covariance"])
    except InputError as error:
        raise InputError(f"{file}: {error}; {REMEDY}") from error
    features = tensors["features"].float()
    if features.ndim != 2 or features.shape[1] != len(moments.mean):
        raise InputError(
            f"{file}: features are {tuple(features.shape)}, not [N, {len(moments.mean)}]; {REMEDY}"
        )
    return Reference(moments, features, name="10,000 test images of Fashion-MNIST")


def write_reference(
    file: Path, data: FashionData, classifier_file: Path = CLASSIFIER.file, device: str = "cpu"
) -> None:
    """Compute the test images' features and write the reference file."""
    classifier = CLASSIFIER.load(device, file=classifier_file)
    features = in_parts(classifier.features, scale(data.test_images.to(device))).double()
    tensors = {
        "mean": features.mean(0),
        "covariance": features.T.cov(),
        "features": features.to(torch.float16),
    }
    config = {"classifier_sha256": sha256_of(classifier_file), "data_sha256": data.sha256}
    save_tensors(file, tensors, REFERENCE_KIND, config)
