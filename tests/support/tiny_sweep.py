"""The smallest experiment that has everything: two cells, two generations, a grid, a proposed axis,
two members.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ld3_dist import load_results

TINY: dict[str, Any] = {
    "name": "tiny",
    "models": ["analytic:mixture-2d"],
    "solvers": ["ddim", "ipndm-2"],
    "nfe": [3],
    "teacher": {"solver": "unipc-3", "nfe": 12, "start": "karras"},
    "pairs": {"train": 8, "valid": 8},
    "learn": {"epochs": 2, "batch": 4},
    "search": {
        "grid": {"gamma": [0, 0.01]},
        "optuna": {"lr": {"low": 0.03, "high": 0.3, "log": True}},
        "rounds": 2,
        "members": {"seeds": 2, "starts": ["log_snr"]},
    },
    "baselines": ["uniform", "karras"],
    "evaluate": {"samples": 40},
    "resources": {
        "shard": 16,
        "batch": 20,
        "actors": 1,
        "cpus_per_actor": 0.5,
        "cpus_per_trial": 0.5,
        "concurrent_trials": 2,
        "retries": 0,
    },
}

PASSING = (
    "source",
    "seconds",
    "device_seconds",
    "peak_memory",
    "started",
    "host",
    "address",
    "device",
    "attempts",
    "git_commit",
)
"""Columns that may differ between two runs of the same experiment (their namesakes of the
evaluation as well).
"""


def changed(**settings: Any) -> dict[str, Any]:
    """TINY with some settings replaced; mappings are merged."""
    data = copy.deepcopy(TINY)
    for key, value in settings.items():
        data[key] = data[key] | value if isinstance(value, Mapping) and key in data else value
    return data


def write(folder: Path, data: dict[str, Any]) -> Path:
    """The experiment as a YAML file."""
    file = folder / f"{data['name']}.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def lasting(place: Path) -> pd.DataFrame:
    """The results without what may differ between runs, by key."""
    frame = load_results(place)
    passing = [c for c in frame.columns if c.removesuffix("_eval") in PASSING]
    return frame.drop(columns=passing).sort_values("key", ignore_index=True)
