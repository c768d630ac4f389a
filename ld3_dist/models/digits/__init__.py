"""The embedded model `digits`: an 8x8 class-conditional diffusion model, in 4 MB with its data.

Its parts can be made again from the command line:

    python -m ld3_dist.models.digits              trains the network (14 minutes on two CPU cores)
    python -m ld3_dist.models.digits classifier   trains the classifier
    python -m ld3_dist.models.digits evaluate     measures the model's quality
    python -m ld3_dist.models.digits data         writes the packaged copy of the data
"""

from .classifier import CLASSIFIER, DigitsClassifier
from .data import data_hash, digits_reference, held_out
from .network import NETWORK, DigitsNetwork, NetworkConfig

__all__ = [
    "CLASSIFIER",
    "NETWORK",
    "DigitsClassifier",
    "DigitsNetwork",
    "NetworkConfig",
    "data_hash",
    "digits_reference",
    "held_out",
]
