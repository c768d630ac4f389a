"""The embedded model `fashion`: a 28x28 class-conditional diffusion model, its classifier and reference statistics.

python -m ld3_dist.models.fashion              trains both networks, measures and writes everything
python -m ld3_dist.models.fashion classifier   trains the classifier alone
python -m ld3_dist.models.fashion statistics   writes the reference statistics of the test images
python -m ld3_dist.models.fashion network      trains the network alone
python -m ld3_dist.models.fashion evaluate     measures the model's quality and draws a sheet of samples
"""

from .classifier import FashionClassifier, classifier_hash, load_fashion_classifier
from .data import FashionData, halves, read_fashion
from .network import NULL_LABEL, FashionNetwork, NetworkConfig
from .opening import (
    draw_condition,
    fashion_denoiser,
    fashion_hash,
    load_fashion_denoiser,
    load_fashion_network,
    null_labels,
)
from .reference import FashionReference, load_fashion_reference

__all__ = [
    "NULL_LABEL",
    "FashionClassifier",
    "FashionData",
    "FashionNetwork",
    "FashionReference",
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
