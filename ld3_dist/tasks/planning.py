"""Making the plan of an experiment: everything it names is opened before anything is written."""

from __future__ import annotations

from ..core.errors import InputError
from ..core.learning.config import LearnConfig
from ..core.learning.procedure import make_config
from ..core.user_code import FILE, PREFIX
from ..experiment.plan import Plan
from ..experiment.reading import blamed_on
from ..experiment.sections import ModelSettings, Range
from ..experiment.settings import Experiment
from ..metrics.extractors import read_reference
from ..models import Model
from ..schedule.noise import check_writable
from ..schedule.sampling import in_loss_space
from ..schedule.starts import check_members, grid_name, may_begin_later
from ..schedule.trying import try_metric, try_procedure, try_start
from .opened import distance_of, extractor_of, judges_of, model_of


def make_plan(experiment: Experiment, source: str = "") -> Plan:
    """Open every model, distance and extractor, for the models' hashes and to see that they open.

    `source` is the experiment's file, for messages. Code of a user's own (solvers, starts,
    procedures, metrics) is tried once.

    Raises InputError for any of them that cannot be opened or does not fit the model's images, for
    code that fails, and for a model whose noise schedule a schedule file cannot hold.
    """
    models: dict[str, Model] = {}
    for i, settings in enumerate(experiment.models):
        with blamed_on(source, f"models.{i}.model"):
            models[settings.label] = model_of(settings, "cpu")
    plan = _plan(experiment, models)
    for settings in plan.models:
        if settings.label not in models:  # the same weights with another guidance
            with blamed_on(source, plan.experiment.axes["guidance"][0]):
                models[settings.label] = model_of(settings, "cpu")
        check_writable(models[settings.label].noise)
        for name in experiment.every_distance:
            distance_of(plan, name, settings, "cpu")
        if experiment.evaluate.samples:
            extractor = extractor_of(plan, settings, "cpu")
            if extractor is not None:
                for name in experiment.evaluate.metrics or ():
                    try_metric(name, extractor, models[settings.label])
        _try_out(plan, settings, models[settings.label])
    if experiment.evaluate.samples:
        judges_of(plan, "cpu")
    reference = experiment.evaluate.reference
    if experiment.evaluate.samples and reference not in ("auto", "teacher"):
        read_reference(reference)
    return plan


def _try_out(plan: Plan, settings: ModelSettings, model: Model) -> None:
    """Call what users wrote, and read schedule files, once per model; InputError where it fails."""
    e, viewed = plan.experiment, in_loss_space(model, plan.experiment.loss_space)
    cells = [cell for cell in plan.cells if cell.model == settings]
    _, searched = e.axes.get("start", ("", ()))
    axis = () if isinstance(searched, Range) else map(str, searched)
    starts = (*(e.search.members.starts or ()), *axis)
    given = (*e.baselines, *map(grid_name, starts))
    names = [name for name in given if _of_user(name)]
    for cell in {cell.solver: cell for cell in reversed(cells)}.values():
        for name in dict.fromkeys(["uniform", *names]):
            try_start(name, viewed, cell.solver, cell.nfe)
    for teacher in plan.teachers:
        if _of_user(teacher.start) or _of_user(teacher.solver):
            try_start(teacher.start, viewed, teacher.solver, teacher.nfe)
    first = cells[0]
    for config in {c.procedure: c for c in _configs(plan)}.values():
        distance = distance_of(plan, e.distance, settings, "cpu")
        check_members(starts, config)
        try_procedure(config, viewed, first.solver, first.nfe, distance)


def _of_user(name: str) -> bool:
    """True for a name that stands for a file."""
    return name.startswith((PREFIX, FILE)) or name.endswith(".json")


def _configs(plan: Plan) -> list[LearnConfig]:
    """The settings of every procedure that a trial may use, without those that are searched."""
    learn = {key: value for key, value in plan.experiment.learn.items() if key != "procedure"}
    return [make_config(name, **learn) for name in plan.experiment.procedures]


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
    return plan_of(experiment, hashes, models)


def plan_of(experiment: Experiment, hashes: dict[str, str], models: dict[str, Model]) -> Plan:
    """The plan from the hashes of all models, and the models that were opened, by label."""
    conditionings = {label: model.conditioning for label, model in models.items()}
    known = {s.model: models[s.label] for s in experiment.models if s.label in models}
    fixed = (name for name, model in known.items() if not may_begin_later(model.noise))
    return Plan(experiment, hashes, conditionings, at_t_max=frozenset(fixed))
