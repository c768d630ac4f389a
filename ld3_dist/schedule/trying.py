"""Trials of user code before any work: solvers, starts, procedures, metrics.

The package's own are tested. Code from a user's file or another package is called here on a model,
so that its mistakes cost seconds and come with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..core.comparison import Distance
from ..core.errors import InputError
from ..core.features import Extractor
from ..core.learning.config import LearnConfig
from ..core.learning.learn import learn
from ..core.learning.pairs import Pairs
from ..core.learning.problem import Problem
from ..core.learning.procedure import procedures
from ..core.sample import draw_noise
from ..core.solver import make_solver
from ..metrics.scores import NotMeasured, Samples, as_reference, find_metric
from ..models import Model
from .baselines import hand_made
from .sampling import device_of, draw_inputs

FEW = 3
"""Number of pairs that a procedure is tried on; as many are held out."""

IMAGES = 64
"""Number of random images that a metric is tried on; as many are compared with them."""


def try_start(name: str, model: Model, solver: str, nfe: int) -> None:
    """Make a grid and the solver's table on it.

    Raises InputError for a start that is no grid of the model, a schedule file of another noise
    schedule, and a solver whose rule fails or gives coefficients that are not finite.
    """
    student = make_solver(solver)
    try:
        table = hand_made(name, model, student, nfe)[1]
    except InputError:
        raise
    except Exception as error:  # it is somebody else's code: anything may come
        raise InputError(
            f"solver {solver!r}: its rule fails on a grid of {student.steps(nfe)} steps "
            f"({type(error).__name__}: {error}); it must return (carry, inject), each [K, E, E]"
        ) from error
    if not all(bool(torch.isfinite(part).all()) for part in (table.state, table.outputs)):
        raise InputError(
            f"solver {solver!r}: its coefficients on the grid {name} in {nfe} evaluations are not "
            "finite; correct its rule"
        )


def try_procedure(
    config: LearnConfig, model: Model, solver: str, nfe: int, distance: Distance
) -> None:
    """Learn one epoch on a few random pairs with a procedure that is not built in.

    Args:
        distance: opened for the model.

    Raises InputError, naming the procedure, if it fails or yields no finite held-out loss.
    """
    if built_in(procedures.get(config.procedure)):
        return
    what, student = f"procedure {config.procedure!r}", make_solver(solver)
    noise, condition = draw_inputs(model, 0, range(FEW))
    target = draw_noise(1, range(FEW), tuple(model.image_shape)).clamp(-1, 1)
    pairs = Pairs(noise, target, condition).to(device_of(model))
    knots = hand_made("uniform", model, student, nfe)[0].knots
    problem = Problem(model.denoiser, student, knots, pairs, pairs, distance, nfe, [0])
    try:
        epochs = list(learn(problem, replace(config, epochs=1)))
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except Exception as error:  # it is somebody else's code: anything may come
        raise InputError(
            f"{what}: fails in its first epoch ({type(error).__name__}: {error})"
        ) from error
    if not epochs or not bool(torch.isfinite(epochs[-1].best_valid).all()):
        raise InputError(
            f"{what}: yields no finite held-out loss on random pairs of {model.id}, so that no "
            "schedule could be chosen; correct its objective"
        )


def try_metric(name: str, extractor: Extractor, model: Model) -> None:
    """Score random images against others, with a metric that is not built in.

    Raises InputError for a metric that fails, or returns anything but numbers. A value that is not
    finite, and one that says why it was not measured, are no mistakes.
    """
    metric = find_metric(name)
    if built_in(metric):
        return
    images = draw_noise(0, range(2 * IMAGES), tuple(model.image_shape)).clamp(-1, 1)
    features = extractor.features_of(images.to(device_of(model)))
    classes = extractor.class_scores
    samples = Samples(features[:IMAGES], None if classes is None else classes(features[:IMAGES]))
    try:
        found = metric(samples, as_reference(features[IMAGES:]))
        for value in found.values() if isinstance(found, Mapping) else [found]:
            float(value)
    except (InputError, NotMeasured):
        pass
    except Exception as error:  # it is somebody else's code: anything may come
        raise InputError(
            f"metric {name!r}: fails on {IMAGES} random images ({type(error).__name__}: {error}); "
            "it is called with (samples, reference) and returns a number, or several by name"
        ) from error


def built_in(entry: object) -> bool:
    """True for an entry of a table that comes with this package."""
    return getattr(entry, "__module__", "").startswith("ld3_dist.")
