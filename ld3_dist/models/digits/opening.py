"""`digits`, `digits-flow`; with `:FILE` weights of them that were trained into another file."""

from __future__ import annotations

from ..embedded.opening import open_embedded
from ..loaded import Model
from ..options import ModelOptions
from .classifier import CLASSIFIER
from .data import digits_reference
from .network import FLOW, NETWORK


def open_digits(rest: str, options: ModelOptions) -> Model:
    """The digits model, with its data; conditional on the ten classes unless conditional=False."""
    return open_embedded(NETWORK, CLASSIFIER, rest, options, data=lambda: digits_reference()[0])


def open_digits_flow(rest: str, options: ModelOptions) -> Model:
    """The digits model of flow matching, like `digits` in all else."""
    return open_embedded(FLOW, CLASSIFIER, rest, options, data=lambda: digits_reference()[0])
