"""Joining a Ray cluster, or starting one on this machine, and what it offers."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

import ray

from ..core.errors import InputError
from ..experiment.settings import Experiment

FRACTIONS = tuple(1 / n for n in range(1, 11))


@dataclass(frozen=True)
class Sizes:
    """Resources of trials and actors, and how many of each run at once."""

    trial: dict[str, float]
    trials: int
    actor: dict[str, float]
    actors: int


def connect(address: str | None) -> None:
    """Join the cluster at `address` ("auto", "host:port", "ray://…"), or start Ray on this machine.

    Raises InputError when there is no cluster at the address, or its Ray is another version.
    """
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a straggling thread must not start a Ray of its own
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the live view is ours
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)  # Ray installs its own, which would end us without a word
    try:
        if address is None:
            ray.init(**options, object_store_memory=200_000_000)
        else:
            ray.init(address=address, **{k: v for k, v in options.items() if k != "include_dashboard"})
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    except ConnectionError as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({str(error).splitlines()[0]}); start one with "
            "`ray start --head`, or leave --address out to use this machine alone"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--address {address}: {str(error).splitlines()[0]}") from error


def sizes_of(experiment: Experiment) -> Sizes:
    """What trials and actors get on this cluster.

    Raises InputError for a fraction Ray cannot schedule and for more than any single node has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(n.get("GPU", 0) for n in nodes)
    asked = experiment.resources
    trial = _size("trial", asked.cpus_per_trial, asked.gpus_per_trial, nodes, gpus)
    actor = _size("actor", asked.cpus_per_actor, asked.gpus_per_actor, nodes, gpus)
    fit = _how_many(trial, nodes)
    limit = min(fit, asked.concurrent_trials or fit)
    actors = _how_many(actor, nodes) if asked.actors == "auto" else asked.actors
    return Sizes(trial, limit, actor, actors)


def _size(
    what: str, cpus: float, gpus: float | str, nodes: list[dict[str, float]], available: float
) -> dict[str, float]:
    gpus = (1.0 if available else 0.0) if gpus == "auto" else float(gpus)
    if 0 < gpus < 1 and not any(abs(gpus - f) < 1e-3 for f in FRACTIONS):
        raise InputError(
            f"resources.gpus_per_{what} = {gpus:g}: a fraction must be 1/2, 1/3, 1/4 …; others can wait for ever"
        )
    if gpus > 1 and not float(gpus).is_integer():
        raise InputError(f"resources.gpus_per_{what} = {gpus:g}: above 1 it must be a whole number")
    most = max((n.get("GPU", 0.0) for n in nodes), default=0.0)
    if gpus > most:
        raise InputError(
            f"resources.gpus_per_{what} = {gpus:g}: no node has more than {most:g} GPUs; ask for less or add nodes"
        )
    most = max((n.get("CPU", 0.0) for n in nodes), default=0.0)
    if cpus > most:
        raise InputError(f"resources.cpus_per_{what} = {cpus:g}: no node has more than {most:g} CPUs; ask for less")
    return {"cpu": cpus, "gpu": gpus}


def _how_many(size: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """How many of this size fit on the nodes at once."""
    count = 0
    for node in nodes:
        by = [node.get("CPU", 0) // size["cpu"]]
        if size["gpu"]:
            per_gpu = round(1 / size["gpu"]) if size["gpu"] < 1 else 1 / size["gpu"]
            by.append(int(node.get("GPU", 0) * per_gpu))
        count += int(min(by))
    return max(count, 1)
