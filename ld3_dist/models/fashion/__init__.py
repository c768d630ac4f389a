"""The embedded model `fashion`: a 28x28 class-conditional diffusion model, its classifier and
reference statistics.

    python -m ld3_dist.models.fashion              trains both networks, measures, writes everything
    python -m ld3_dist.models.fashion classifier   trains the classifier alone
    python -m ld3_dist.models.fashion statistics   writes the statistics of the test images
    python -m ld3_dist.models.fashion network      trains the network alone
    python -m ld3_dist.models.fashion evaluate     measures the model and draws a sheet of samples
"""

from .classifier import FashionClassifier, classifier_hash, load_fashion_classifier
from .data import FashionData, halves, read_fashion
from .denoiser import (
    draw_condition,
    fashion_denoiser,
    fashion_hash,
    load_fashion_denoiser,
    load_fashion_network,
    null_labels,
)
from .network import NULL_LABEL, FashionNetwork, NetworkConfig
from .reference import load_fashion_reference

__all__ = [
    "NULL_LABEL",
    "FashionClassifier",
    "FashionData",
    "FashionNetwork",
    "NetworkConfig",
    "classifier_hash",
    "draw_condition",
    "fashion_denoiser",
    "fashion_hash",
    "halves",
    "load_fashion_classifier",
    "load_fashion_denoiser",
    "load_fashion_network",
    "load_fashion_reference",
    "null_labels",
    "read_fashion",
]
