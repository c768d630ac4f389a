"""The embedded model `digits`: an 8x8 class-conditional diffusion model, in 4 MB with its data.

Its parts can be made again from the command line:

    python -m ld3_dist.models.digits              trains the network (14 minutes on two CPU cores)
    python -m ld3_dist.models.digits classifier   trains the classifier
    python -m ld3_dist.models.digits evaluate     measures the model's quality
    python -m ld3_dist.models.digits data         writes the packaged copy of the data
"""

from .classifier import DigitsClassifier, classifier_hash, load_digits_classifier
from .data import data_hash, digits_reference, halves, held_out
from .denoiser import (
    digits_denoiser,
    digits_hash,
    draw_condition,
    load_digits_denoiser,
    load_digits_network,
    null_labels,
)
from .network import NULL_LABEL, DigitsNetwork, NetworkConfig

__all__ = [
    "NULL_LABEL",
    "DigitsClassifier",
    "DigitsNetwork",
    "NetworkConfig",
    "classifier_hash",
    "data_hash",
    "digits_denoiser",
    "digits_hash",
    "digits_reference",
    "draw_condition",
    "halves",
    "held_out",
    "load_digits_classifier",
    "load_digits_denoiser",
    "load_digits_network",
    "null_labels",
]
