"""From an experiment to its plan: everything it names is opened once, before anything is written."""

from __future__ import annotations

from ..core.errors import InputError
from ..core.user_code import PREFIX
from ..experiment.plan import Plan
from ..experiment.settings import Experiment
from ..metrics.extractors import read_reference
from ..models import Model
from ..schedule.noise import check_writable
from .opened import distance_of, extractor_of, model_of


def make_plan(experiment: Experiment) -> Plan:
    """Open every model, distance and extractor, for the models' hashes and to see that they open.

    Raises InputError for any of them that cannot be opened or does not fit the model's images, and
    for a model whose noise schedule a schedule file cannot hold.
    """
    models = {settings.label: model_of(settings, "cpu") for settings in experiment.models}
    plan = _plan(experiment, models)
    for settings in experiment.models:
        check_writable(models[settings.label].noise)
        for name in experiment.distances:
            distance_of(plan, name, settings, "cpu")
        if experiment.evaluate.samples:
            extractor_of(plan, settings, "cpu")
    reference = experiment.evaluate.reference
    if experiment.evaluate.samples and reference not in ("auto", "teacher"):
        read_reference(reference)
    return plan


def plan_as_far_as_known(experiment: Experiment) -> tuple[Plan, list[str]]:
    """The plan, and why some of its models cannot be opened yet; their hash is "unknown" then.

    Names of cells and the cost need no weights; keys and the fingerprint do. Raises InputError for
    a model that is not read from files of weights.
    """
    models: dict[str, Model] = {}
    absent = []
    for settings in experiment.models:
        try:
            models[settings.label] = model_of(settings, "cpu")
        except InputError as error:
            if ":" not in settings.model or settings.model.startswith(("analytic:", PREFIX)):
                raise
            absent.append(str(error))
    return _plan(experiment, models), absent


def _plan(experiment: Experiment, models: dict[str, Model]) -> Plan:
    labels = [settings.label for settings in experiment.models]
    hashes = {label: models[label].hash if label in models else "unknown" for label in labels}
    return Plan(experiment, hashes, {label: model.conditioning for label, model in models.items()})
