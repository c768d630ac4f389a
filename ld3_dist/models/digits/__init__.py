"""The embedded models `digits` and `digits-flow`: 8x8 class-conditional networks of diffusion and
of flow matching, in 8 MB with their data.

Its parts can be made again from the command line:

    python -m ld3_dist.models.digits              trains the network (14 minutes on two CPU cores)
    python -m ld3_dist.models.digits flow         trains the network of flow matching (as long)
    python -m ld3_dist.models.digits classifier   trains the classifier
    python -m ld3_dist.models.digits evaluate     measures the model's quality
    python -m ld3_dist.models.digits data         writes the packaged copy of the data
"""

from .classifier import CLASSIFIER, DigitsClassifier
from .data import data_hash, digits_reference, held_out
from .network import FLOW, NETWORK, DigitsNetwork, NetworkConfig

__all__ = [
    "CLASSIFIER",
    "FLOW",
    "NETWORK",
    "DigitsClassifier",
    "DigitsNetwork",
    "NetworkConfig",
    "data_hash",
    "digits_reference",
    "held_out",
]
