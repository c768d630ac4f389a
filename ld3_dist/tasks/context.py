"""What stays in a process between tasks: open models, loaded pairs, distances.

Opening them costs more than most tasks.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..core.distance import MIN_SIDE, Distance, make_distance
from ..core.errors import InputError
from ..core.grid import discretize, resample
from ..core.learning.learn import Pairs
from ..core.memory import in_parts
from ..core.sample import sample
from ..core.solver import Solver, Tableau, make_solver
from ..experiment.plan import Plan
from ..experiment.settings import Experiment, ModelSettings
from ..metrics.extractors import Extractor, open_extractor, read_reference
from ..models import Model, ModelOptions, open_model
from ..schedule.file import load_schedule, noise_to_dict
from ..store.pairs import load_pairs, unpack_condition
from ..store.process import node_address
from ..store.storage import Storage
from ..training_free import TRAINING_FREE

log = logging.getLogger("ld3_dist")

_OPEN: dict[str, Any] = {}
_KEPT = 4


def keep(key: str, make: Any) -> Any:
    """The value kept under a key, made once; the last few only, so that a long sweep does not fill
    memory.
    """
    if key in _OPEN:
        _OPEN[key] = _OPEN.pop(key)  # now the youngest
    else:
        while len(_OPEN) >= 3 * _KEPT:
            _OPEN.pop(next(iter(_OPEN)))
        _OPEN[key] = make()
    return _OPEN[key]


def default_device() -> str:
    """cuda where one is visible to this process, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_settings(model: ModelSettings, device: str | None = None) -> Model:
    """The model of an experiment, open in this process."""
    device = device or default_device()
    options = model.model_dump(exclude={"model", "name", "recompute"})
    texts = [
        Path(file).stat().st_mtime_ns
        for file in (model.prompts, model.classes)
        if file and Path(file).is_file()
    ]
    key = f"model {model.model_dump_json()} {texts} {device}"
    return keep(key, lambda: open_model(model.model, ModelOptions(device=device, **options)))


def make_plan(experiment: Experiment) -> Plan:
    """Open every model, distance and extractor once, here: for the models' hashes, and before
    anything is written.

    Raises InputError for any of them that cannot be opened, or that does not fit the model's
    images."""
    opened = {model.label: open_settings(model, "cpu") for model in experiment.models}
    plan = Plan(
        experiment,
        {n: o.hash for n, o in opened.items()},
        {n: o.conditioning for n, o in opened.items()},
    )
    for model in experiment.models:
        for name in experiment.distances:
            distance_of(plan, name, model, "cpu")
        if experiment.evaluate.samples:
            extractor_of(plan, model, "cpu")
    if experiment.evaluate.samples and experiment.evaluate.reference not in ("auto", "teacher"):
        read_reference(experiment.evaluate.reference)
    return plan


def plan_as_far_as_known(experiment: Experiment) -> tuple[Plan, list[str]]:
    """The plan, and what is not there yet: a model read from files may be absent, its hash is
    "unknown" then.

    Names of cells and the cost need no weights; keys and the fingerprint do.
    Raises InputError for any other kind of model.
    """
    opened: dict[str, Model] = {}
    absent = []
    for model in experiment.models:
        try:
            opened[model.label] = open_settings(model, "cpu")
        except InputError as error:
            if not model.model.startswith(("edm:", "diffusers:")):
                raise
            absent.append(str(error))
    hashes = {
        m.label: opened[m.label].hash if m.label in opened else "unknown" for m in experiment.models
    }
    return Plan(
        experiment, hashes, {name: found.conditioning for name, found in opened.items()}
    ), absent


def pairs_of(
    plan: Plan,
    model: ModelSettings,
    storage: Storage,
    start: int,
    stop: int,
    device: str | None = None,
) -> Pairs:
    """The teacher pairs of a range of samples, on the device."""
    place = storage.child(f"pairs/{plan.teacher_key(model)}")

    def load() -> Pairs:
        tensors = load_pairs(place, start, stop)
        return Pairs(tensors["noise"], tensors["target"], unpack_condition(tensors)).to(
            device or default_device()
        )

    return keep(f"pairs {place.url} {start} {stop} {device}", load)


def distance_of(plan: Plan, name: str, model: ModelSettings, device: str | None = None) -> Distance:
    """A distance by name, with the experiment's options; `feature` uses the extractor the model
    comes with.
    """
    opened, options = open_settings(model, device), plan.experiment.distance_options(name)
    key = f"distance {name} {options} {model.model_dump_json()} {device}"
    return keep(key, lambda: make_distance_for(name, opened, device, **options))


def make_distance_for(
    name: str, opened: Model, device: str | None, trunk: str | None = None, upsample: bool = False
) -> Distance:
    """A distance by name for an open model; trunk and upsample are LPIPS's."""
    device = device or default_device()
    side, least = min(opened.image_shape[-2:]), MIN_SIDE.get(name.partition("-")[2] or "vgg", 1)
    if name.startswith("lpips") and side < least and not upsample:
        raise InputError(
            f"{name} needs images of at least {least} pixels a side, those of {opened.id} have "
            f"{side}; enlarge them "
            "(lpips: {upsample: true}; --upsample), or use l2 or feature"
        )
    extractor = open_extractor("auto", opened, device) if name == "feature" else None
    return make_distance(
        name, extractor.maps if extractor else None, trunk=trunk, upsample=upsample
    ).to(device)


def extractor_of(plan: Plan, model: ModelSettings, device: str | None = None) -> Extractor | None:
    """The feature extractor of the evaluation, for a model."""
    name, opened = plan.experiment.evaluate.extractor, open_settings(model, device)
    return keep(
        f"extractor {name} {opened.id} {device}",
        lambda: open_extractor(name, opened, device or "cpu"),
    )


def make_samples(opened: Model, tableau: Tableau, pairs: Pairs, batch: int) -> torch.Tensor:
    """Decoded samples of a schedule from the noise of `pairs`, in batches; half as many at once if
    memory runs out.

    Raises InputError where a single sample does not fit.
    """
    denoiser = opened.denoiser

    def run(part: slice) -> torch.Tensor:
        given = pairs[part]
        return denoiser.decode(
            sample(denoiser, tableau, denoiser.noise.prior_scale * given.noise, given.condition)
        )

    return torch.cat(in_parts(len(pairs), batch, run, opened.id))


def start_knots(
    name: str, opened: Model, solver: Solver, nfe: int, pairs: Pairs | None = None
) -> torch.Tensor:
    """Knots [N+1] of a discretization by name; those computed from the network see the noise of
    `pairs`.
    """
    noise = opened.denoiser.noise
    if name not in TRAINING_FREE:
        return discretize(noise, solver.steps(nfe), name)
    from ..training_free import find_knots

    x_T = None if pairs is None else noise.prior_scale * pairs.noise
    return find_knots(
        name, opened.denoiser, solver, nfe, x_T=x_T, condition=pairs.condition if pairs else None
    )


def schedule_knots(place: str, opened: Model, steps: int) -> torch.Tensor:
    """Knots [steps + 1] like those of a schedule file (path or URL), of any number of steps.

    Raises InputError for anything but a schedule file, and for a schedule of another noise schedule
    than the model's."""
    schedule, noise = load_schedule(place), opened.denoiser.noise
    ours = noise_to_dict(noise)
    if dict(schedule.noise) != ours:
        theirs, ours = (
            ", ".join(f"{k} {v}" for k, v in d.items() if not isinstance(v, list))
            for d in (schedule.noise, ours)
        )
        raise InputError(
            f"{place}: its times are those of another noise schedule ({theirs}) than that of "
            f"{opened.id} ({ours}); "
            "give a schedule of the same model or a hand-made grid"
        )
    try:
        return resample(noise, torch.tensor(schedule.knots, dtype=torch.float64), steps)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def teacher_tableau(plan: Plan, opened: Model) -> Tableau:
    """The teacher of an experiment on a model."""
    teacher = plan.experiment.teacher
    solver = make_solver(teacher.solver)
    knots = start_knots(teacher.start, opened, solver, teacher.nfe)
    noise = opened.denoiser.noise
    return solver.tableau(noise, solver.coupled(noise, knots, teacher.nfe))


@lru_cache
def provenance() -> dict[str, str | None]:
    """Versions and commit, for every row."""
    from .. import __version__

    return {"version": __version__, "torch_version": torch.__version__, "git_commit": _git_commit()}


def where(device: str | None = None) -> dict[str, str]:
    """Machine (name and address) and device doing the work."""
    device = device or default_device()
    name = f"cuda: {torch.cuda.get_device_name()}" if device.startswith("cuda") else device
    return {"host": socket.gethostname(), "address": node_address(), "device": name}


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_commit() -> str | None:
    """Commit of the working copy this package is run from; LD3_DIST_COMMIT wins (images built
    without a repository).
    """
    if commit := os.environ.get("LD3_DIST_COMMIT"):
        return commit
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
