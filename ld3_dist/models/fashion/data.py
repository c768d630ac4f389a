"""The Fashion-MNIST data (Xiao et al. 2017, MIT licence): 60,000 + 10,000 grey images of 28x28
pixels, ten classes.

    image = byte / 127.5 - 1,   byte in 0 … 255

The data is not part of this package. Debian's package `dataset-fashion-mnist` installs it; a folder
with the four IDX files, plain or compressed with gzip, is as good. An IDX file is a header of
32-bit numbers, the high byte first (a magic number that gives the kind and the number of
dimensions, then the dimensions), followed by the bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.errors import InputError
from .network import SHAPE

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
REMEDY = (
    "install Debian's package dataset-fashion-mnist, or give the folder of the four IDX files of "
    "Fashion-MNIST with --data"
)
KINDS = {
    "images": (0x00000803, 3),
    "labels": (0x00000801, 1),
}  # unsigned bytes: magic number, dimensions


@dataclass(frozen=True, eq=False)
class FashionData:
    """Images uint8 [N, 28, 28] and labels int64 [N] in 0 … 9, for training and for tests."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the bytes of images and labels, the same for plain and compressed files."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(tensor.to(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def first(self, train: int, test: int) -> FashionData:
        """A small part of the data, for dry runs."""
        parts = (self.train_images[:train], self.train_labels[:train])
        return FashionData(*parts, self.test_images[:test], self.test_labels[:test])


def read_fashion(folder: Path) -> FashionData:
    """Read the four IDX files of a folder.

    Raises InputError, naming the file and the remedy, when one is missing, truncated, of another
    kind, or when images and labels do not belong together.
    """
    parts: list[Tensor] = []
    for name in ("train", "t10k"):
        images, labels = (
            _find(folder, f"{name}-{what}-idx{n}-ubyte") for what, (_, n) in KINDS.items()
        )
        pixels, classes = read_idx(images, "images"), read_idx(labels, "labels")
        if pixels.shape[1:] != SHAPE[1:]:
            size = "x".join(str(n) for n in pixels.shape[1:])
            raise InputError(f"{images}: images of {size} pixels, expected 28x28; {REMEDY}")
        if len(pixels) != len(classes) or len(pixels) == 0:
            raise InputError(f"{labels}: {len(classes)} labels for {len(pixels)} images; {REMEDY}")
        if classes.max() > 9:
            raise InputError(
                f"{labels}: label {classes.max()} is not a number from 0 to 9; {REMEDY}"
            )
        parts += [torch.from_numpy(pixels), torch.from_numpy(classes).long()]
    return FashionData(*parts)


def read_idx(file: Path, kind: str) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, plain or gzip; kind is "images" or "labels".

    Raises InputError, naming the file and the remedy, when it is truncated, too long or of another
    kind.
    """
    magic, dimensions = KINDS[kind]
    try:
        data = file.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{file}: cannot be read, damaged or truncated ({error}); {REMEDY}"
        ) from error
    header = 4 + 4 * dimensions
    if len(data) < 4 or struct.unpack(">I", data[:4])[0] != magic:
        raise InputError(
            f"{file}: not an IDX file of {kind} (it starts with {data[:4].hex()!r}, not "
            f"{magic:08x}); {REMEDY}"
        )
    if len(data) < header:
        raise InputError(f"{file}: truncated, it ends inside its header; {REMEDY}")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != math.prod(shape):
        what = "truncated" if len(data) - header < math.prod(shape) else "too long"
        raise InputError(
            f"{file}: {what}, {len(data) - header} bytes where "
            f"{' x '.join(map(str, shape))} are announced; {REMEDY}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def scale(images: Tensor) -> Tensor:
    """Bytes [N, 28, 28] -> images [N, 1, 28, 28] float32 in [-1, 1]."""
    return images[:, None].float() / 127.5 - 1


def _find(folder: Path, name: str) -> Path:
    for file in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if file.is_file():
            return file
    raise InputError(f"{Path(folder) / name}: file not found, nor with .gz; {REMEDY}")
