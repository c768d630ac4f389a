"""A sweep as its user writes it, and what follows from it: cells, trials, keys, ranges of samples,
cost.
"""

from .plan import Cell, Plan, TrialSpec
from .reading import load_experiment, parse_experiment
from .settings import Experiment

__all__ = ["Cell", "Experiment", "Plan", "TrialSpec", "load_experiment", "parse_experiment"]
