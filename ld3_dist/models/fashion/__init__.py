"""The embedded model `fashion`: a 28x28 class-conditional diffusion model, with its classifier.

The package holds statistics of the test images, but not the images.

    python -m ld3_dist.models.fashion              trains both networks, measures, writes everything
    python -m ld3_dist.models.fashion classifier   trains the classifier alone
    python -m ld3_dist.models.fashion statistics   writes the statistics of the test images
    python -m ld3_dist.models.fashion network      trains the network alone
    python -m ld3_dist.models.fashion evaluate     measures the model and draws a sheet of samples
"""

from .classifier import CLASSIFIER, FashionClassifier
from .data import FashionData, read_fashion
from .network import NETWORK, FashionNetwork, NetworkConfig
from .reference import load_fashion_reference

__all__ = [
    "CLASSIFIER",
    "NETWORK",
    "FashionClassifier",
    "FashionData",
    "FashionNetwork",
    "NetworkConfig",
    "load_fashion_reference",
    "read_fashion",
]
