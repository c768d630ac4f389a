"""`fashion`, `fashion:FILE`: the packaged model, or weights of it trained into another file."""

from __future__ import annotations

from ..embedded.opening import open_embedded
from ..loaded import Model
from ..options import ModelOptions
from .classifier import CLASSIFIER
from .network import NETWORK
from .reference import load_fashion_reference


def open_fashion(rest: str, options: ModelOptions) -> Model:
    """The fashion model; conditional on the ten classes unless conditional=False.

    Its samples are compared with the packaged statistics of the test images.
    """
    return open_embedded(NETWORK, CLASSIFIER, rest, options, reference=load_fashion_reference)
