"""Things that stay open in a process between tasks: models, pairs, distances, extractors.

Opening them costs more than most tasks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..core.distance import Distance
from ..core.features import Judge
from ..core.learning.pairs import Pairs
from ..core.memory import total_memory
from ..core.user_code import content_in
from ..experiment.plan import Plan
from ..experiment.sections import ModelSettings
from ..metrics.extractors import Extractor, open_extractor
from ..metrics.judges import open_judges
from ..models import Model, ModelOptions, open_model
from ..models.inside import bytes_of
from ..schedule.distances import open_distance
from ..schedule.provenance import default_device
from ..schedule.teaching import Teacher
from ..store.pairs import load_pairs, unpack_condition
from ..store.storage import Storage

_OPEN: dict[str, Any] = {}
_KEPT = 12

_SHARE = 0.1
"""Share of a device's memory that open models may hold when another one is opened.

Where they hold more they are let go of first: learning needs memory for activations, too."""


def keep(key: str, make: Callable[[], Any]) -> Any:
    """The value kept under a key, made once; only the last _KEPT, so that memory does not fill."""
    if key in _OPEN:
        _OPEN[key] = _OPEN.pop(key)  # now the youngest
    else:
        while len(_OPEN) >= _KEPT:
            _OPEN.pop(next(iter(_OPEN)))
        _OPEN[key] = make()
    return _OPEN[key]


def kept(key: str) -> Any:
    """The value kept under a key; None if there is none."""
    return _OPEN.get(key)


def forget(key: str) -> None:
    """Let go of what is kept under a key, if anything is."""
    _OPEN.pop(key, None)


def _make_room(device: torch.device) -> None:
    """Let go of what is open, if the models among it are large for the device."""
    held = sum(bytes_of(found.denoiser) for found in _OPEN.values() if isinstance(found, Model))
    if held > _SHARE * total_memory(device):
        _OPEN.clear()
        gc.collect()  # modules refer to each other


def model_of(settings: ModelSettings, device: str | None = None) -> Model:
    """The model of an experiment, open in this process.

    Args:
        device: that a driver looks at the model on; it is not compiled there. If not given, the one
            that this process works on.
    """
    works = device is None
    settings = settings.model_copy(update={"compile": settings.compile and works})
    device = device or default_device()
    options = settings.model_dump(exclude={"model", "name", "recompute"})
    files = [file for file in (settings.prompts, settings.classes) if file]
    texts = [Path(file).stat().st_mtime_ns for file in files if Path(file).is_file()]
    key = f"model {settings.model_dump_json()} {content_in(settings.model)} {texts} {device}"
    if works and key not in _OPEN:
        _make_room(torch.device(device))
    return keep(key, lambda: open_model(settings.model, ModelOptions(device=device, **options)))


def pairs_folder(
    plan: Plan, settings: ModelSettings, storage: Storage, teacher: Teacher | None = None
) -> Storage:
    """The folder of a teacher's pairs; of the experiment's own teacher if not given."""
    return storage.child(f"pairs/{plan.teacher_key(settings, teacher)}")


def pairs_of(
    plan: Plan,
    settings: ModelSettings,
    storage: Storage,
    start: int,
    stop: int,
    device: str | None = None,
    teacher: Teacher | None = None,
) -> Pairs:
    """The pairs of the samples [start, stop) on the device; the own teacher's if none is given."""
    folder = pairs_folder(plan, settings, storage, teacher)

    def load() -> Pairs:
        tensors = load_pairs(folder, start, stop)
        pairs = Pairs(tensors["noise"], tensors["target"], unpack_condition(tensors))
        return pairs.to(device or default_device())

    return keep(f"pairs {folder.url} {start} {stop} {device}", load)


def distance_of(
    plan: Plan, name: str, settings: ModelSettings, device: str | None = None
) -> Distance:
    """A distance by name, with the experiment's options, for a model."""
    model, options = model_of(settings, device), plan.experiment.distance_options(name)
    key = f"distance {name} {content_in(name)} {options} {model.hash} {device}"
    return keep(key, lambda: open_distance(name, model, device or default_device(), **options))


def judges_of(plan: Plan, device: str | None = None) -> dict[str, Judge]:
    """The judges among the metrics of the evaluation, by name."""
    metrics = plan.experiment.evaluate.metrics or ()
    key = f"judges {metrics} {[plan.content(name) for name in metrics]} {device}"
    return keep(key, lambda: open_judges(metrics, device or default_device()))


def extractor_of(
    plan: Plan, settings: ModelSettings, device: str | None = None
) -> Extractor | None:
    """The feature extractor of the evaluation, for a model."""
    name, model = plan.experiment.evaluate.extractor, model_of(settings, device)
    key = f"extractor {name} {content_in(name)} {model.id} {model.hash} {device}"
    return keep(key, lambda: open_extractor(name, model, device or "cpu"))
