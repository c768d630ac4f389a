"""The digits data: 1,797 handwritten digits of 8x8 pixels, 17 grey levels, scaled to [-1, 1].

    image = count / 8 - 1,   count in 0 … 16

The data set is the test part of Alpaydin & Kaynak's "Optical Recognition of Handwritten Digits"
(UCI, 1998), which scikit-learn ships as `load_digits`. A copy lies beside this file (uint8,
safetensors); scikit-learn is needed only to write that copy again.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..weights import read_tensors, save_tensors, sha256_of

DATA_FILE = Path(__file__).with_name("data.safetensors")
DATA_KIND = "ld3_dist digits data 1"
REMEDY = (
    "reinstall ld3_dist, or write it anew with `python -m ld3_dist.models.digits data` (needs "
    "scikit-learn)"
)


def digits_reference() -> tuple[Tensor, Tensor]:
    """All images [1797, 1, 8, 8] float32 in [-1, 1], and their labels [1797] int64.

    The tensors are copies, which the caller may change. Raises InputError if the packaged file is
    missing, truncated or another file.
    """
    images, labels = _counts()
    return images.float()[:, None] / 8 - 1, labels.long()


@cache
def _counts() -> tuple[Tensor, Tensor]:
    tensors, _ = read_tensors(DATA_FILE, DATA_KIND, REMEDY)
    return tensors["images"], tensors["labels"]


@cache
def data_hash() -> str:
    """SHA-256 of the packaged data file."""
    return sha256_of(DATA_FILE)


def held_out() -> Tensor:
    """Boolean mask [1797] of the fifth that the classifier is not trained on.

    It is every fifth image of each class, in file order, and never changes. The file keeps the
    images of a writer together, so the training images show the same hands: the accuracy is for
    writers that the classifier knows.
    """
    labels = digits_reference()[1]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique():
        index = (labels == c).nonzero().flatten()
        mask[index[4::5]] = True
    return mask


def write_data(file: Path = DATA_FILE) -> None:
    """Write the data file from scikit-learn's copy.

    Raises ImportError, naming the extra to install, if scikit-learn is absent.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "writing the digits data needs scikit-learn: pip install 'ld3_dist[dev]'"
        ) from error
    digits: Any = load_digits()  # a Bunch, which type checkers take for a tuple
    images = torch.as_tensor(digits.images).to(torch.uint8)
    save_tensors(
        file,
        {"images": images, "labels": torch.as_tensor(digits.target).to(torch.uint8)},
        DATA_KIND,
    )
