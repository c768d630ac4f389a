"""ld3_dist: learned time grids for diffusion and flow models, searched on a cluster.

    load_model(name), Model(denoiser)     a pre-trained network as a data predictor
    teach(model, n)                       teacher pairs: unit noise and a precise solver's samples
    learn(model, solver, nfe, pairs)      a Schedule; `learning` yields after every epoch. With
                                          nfe=range(4, 11), procedure="curve" it is for any NFE
    load_schedule(file)                   a schedule file; schedule.save, schedule.sample
    evaluate(model, schedules)            fresh samples and their scores, as a DataFrame
    transfer(schedule, models)            schedules scored where they were not learned
    load_results(folder, …)               every learned schedule and baseline of sweeps
    load_curves(folder, …)                their losses, epoch by epoch
    load_samples(folder, …)               their losses, sample by sample

The names are resolved on first use: `import ld3_dist` loads neither pandas nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core.errors import InputError as InputError
    from .models import Model as Model
    from .models import load_model as load_model
    from .schedule.evaluating import evaluate as evaluate
    from .schedule.file import Schedule as Schedule
    from .schedule.file import load_schedule as load_schedule
    from .schedule.learning import learn as learn
    from .schedule.learning import learning as learning
    from .schedule.teaching import teach as teach
    from .schedule.transferring import transfer as transfer
    from .store.results import load_results as load_results
    from .store.views import load_curves as load_curves
    from .store.views import load_samples as load_samples

__version__ = "0.1.0"

_HOMES = {
    "InputError": "core.errors",
    "Model": "models",
    "Schedule": "schedule.file",
    "evaluate": "schedule.evaluating",
    "learn": "schedule.learning",
    "learning": "schedule.learning",
    "load_curves": "store.views",
    "load_model": "models",
    "load_results": "store.results",
    "load_samples": "store.views",
    "load_schedule": "schedule.file",
    "teach": "schedule.teaching",
    "transfer": "schedule.transferring",
}

__all__ = [
    "InputError",
    "Model",
    "Schedule",
    "__version__",
    "evaluate",
    "learn",
    "learning",
    "load_curves",
    "load_model",
    "load_results",
    "load_samples",
    "load_schedule",
    "teach",
    "transfer",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ld3_dist' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
