"""Inception-v3 as used for FID, through torch-fidelity, with weights from a local file
(`inception:FILE`).

Images in [-1, 1] become 8-bit pixels, floor(127.5 x + 128) cut to [0, 255], as reference statistics
are made; the library enlarges them to 299 x 299 as the original TensorFlow graph does. Features are
the 2048 numbers f before the last layer; that layer's outputs W f (without its bias, as in
published scores) give the Inception score (Salimans et al. 2016):

    exp E_x KL( p(y | x) || p(y) ),    p(y | x) = softmax(W f(x))

The file is read with `weights_only` before the library sees it: nothing in it is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.features import Extractor
from ..models.weights import sha256_of

FEATURES = 2048
CHUNK = 64
"""Images that go through the network at once; at 299 x 299 they are large whatever their own size.
"""

FILE = "weights-inception-2015-12-05-6726825d.pth"
SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SPLITS = 10


def open_inception(path: str, device: str = "cpu") -> Extractor:
    """The extractor behind `inception:{path}`.

    Raises InputError for a missing file, one that does not hold Inception-v3's weights, and a
    missing package."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(
            f"Inception weights {file}: no such file; download {SOURCE} and put it there"
        )
    network = _network(file).to(device)
    weight = network.fc.weight  # [1008, 2048]

    def features(x: Tensor) -> Tensor:
        """Images [B, 1 or 3, H, W] in [-1, 1] -> [B, 2048]."""
        with torch.no_grad():
            return torch.cat([network(to_bytes(part).to(device))[0] for part in x.split(CHUNK)])

    return Extractor(
        "inception",
        sha256_of(file),
        features,
        class_scores=lambda f: f.double() @ weight.T.to(f.device, torch.float64),
        differentiable=False,
    )


def to_bytes(x: Tensor) -> Tensor:
    """Images [B, 1 or 3, H, W] in [-1, 1] -> uint8 [B, 3, H, W]."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(
            f"extractor inception: needs images [B, 1 or 3, H, W], got {tuple(x.shape)}; use "
            f"another"
        )
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def inception_score(scores: Tensor) -> float:
    """Mean Inception score of up to SPLITS equal parts of class scores (logits) [M, classes]."""
    log_p = scores.double().log_softmax(1)
    parts = [p for p in log_p.tensor_split(min(SPLITS, len(log_p))) if len(p)]
    marginals = [
        p.logsumexp(0) - torch.tensor(float(len(p)), dtype=torch.float64).log() for p in parts
    ]
    divergences = [
        (p.exp() * (p - m)).sum(1).mean().exp() for p, m in zip(parts, marginals, strict=True)
    ]
    return torch.stack(divergences).mean().item()


def _network(file: Path) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise InputError(
            f"Inception features cannot be loaded ({error}): pip install 'ld3_dist[metrics]'"
        ) from error
    wrong = f"Inception weights {file}: not those of Inception-v3 as used for FID"
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a wrong or truncated file makes torch raise
        raise InputError(f"{wrong} ({_first_line(error)}); download {SOURCE}") from error
    head = weights.get("fc.weight") if isinstance(weights, dict) else None
    if not isinstance(head, Tensor) or head.shape[-1] != FEATURES:
        raise InputError(f"{wrong} (no tensor fc.weight [1008, {FEATURES}]); download {SOURCE}")
    del weights
    try:
        return FeatureExtractorInceptionV3(
            "inception", [str(FEATURES)], feature_extractor_weights_path=str(file)
        )
    except RuntimeError as error:
        raise InputError(f"{wrong} ({_first_line(error)}); download {SOURCE}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).split("\n")
    return " ".join(line.strip() for line in lines[:2])[:200] or type(error).__name__
