"""ld3_dist: learned time discretizations for diffusion and flow models, searched on a cluster.

    load_results(folder)    -> pandas.DataFrame of every learned schedule and every baseline of a
                            sweep
    load_schedule(file)     -> Schedule, a grid with its coefficient table and where it came from
    load_model(name)        -> Denoiser, a pre-trained network as a data predictor

The names are resolved on first use, so that `import ld3_dist.core` needs neither pandas nor
pyarrow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .models import load_model as load_model
    from .schedule.file import load_schedule as load_schedule
    from .store.results import load_results as load_results

__version__ = "0.1.0"

_HOMES = {"load_results": "store.results", "load_schedule": "schedule.file", "load_model": "models"}

__all__ = ["__version__", "load_model", "load_results", "load_schedule"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ld3_dist' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
