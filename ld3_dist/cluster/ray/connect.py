"""Joining a Ray cluster, or starting one on this machine, and what it offers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from ...core.errors import InputError
from ...experiment.settings import Experiment
from ...store.credentials import masked
from .local_folders import folder_options

ANSWER = 10.0
"""Seconds a host has to accept a connection."""

JOIN = 60.0
"""Seconds joining a cluster may take."""

WASTE = 0.02
"""A fraction of a GPU that leaves more than this of it idle, however many trials share it, is taken
for a mistake.
"""

_JOIN = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
except Exception as error:
    print(" ".join(str(error).split()))
    raise SystemExit(3)
"""


@dataclass(frozen=True)
class Sizes:
    """Resources of trials and actors, and how many of each run at once.

    Keys are cpu, gpu, and the names of custom resources.
    """

    trial: dict[str, float]
    trials: int
    actor: dict[str, float]
    actors: int


SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the live view is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    # Tune asks the head for the cluster's resources, every 10 s unless told otherwise. Without a
    # head that call holds the interpreter's lock until Ray ends the process: nobody could say why.
    "TUNE_STATE_REFRESH_PERIOD": "1e9",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
"""Environment variables that Ray reads in this process, unless they are set already."""


def connect(address: str | None) -> None:
    """Join the cluster at `address` ("auto", "host:port"), or start Ray on this machine.

    Raises InputError, after JOIN seconds at the latest, when there is no cluster at the address,
    its Ray or Python is another version, or it demands another token."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    address = None if address == "local" else address
    if address is not None:
        check_address(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Ray installs a handler of its own, which would end us without a word
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            # "local": without it Ray would join a cluster that happens to run on this machine
            ray.init(
                "local",
                **quiet,
                **folder_options(),
                include_dashboard=False,
                object_store_memory=200_000_000,
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise _refused(address, _on_one_line(error)) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    keep_off_the_terminal("ray.tune")


def keep_off_the_terminal(name: str) -> None:
    """Send the records of one of Ray's loggers to the sweep's log only.

    Tune prints the traceback of every failed attempt, also of a worker that was killed. The sweep
    says the same in a line and keeps the traceback in its table of failures."""
    theirs = logging.getLogger(name)
    theirs.propagate = False
    if not theirs.handlers:
        theirs.addHandler(_ToOurs())


class _ToOurs(logging.Handler):
    """Hands records on to our logger as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("ld3_dist").info("%s: %s", record.name, record.getMessage())


def _on_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def check_address(address: str) -> None:
    """Raise InputError unless a Ray cluster that this process can join answers at the address, in
    bounded time.

    A join that gets no answer, or one from something that is not Ray, does not return and cannot be
    interrupted: first a plain connection is tried, then a child process joins, which can be ended.
    """
    if address.startswith("ray://"):
        raise InputError(
            f"--address {address}: the driver of a sweep must run on a machine of the cluster; "
            "start it there with --address auto, or from here with `ray job submit --address "
            "http://HEAD:8265 -- ld3-dist sweep …`"
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise InputError(f"--address {address}: write auto or HOST:PORT, e.g. 10.0.0.1:6379")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
        except OSError as error:
            raise _refused(address, str(error)) from error
    try:
        done = subprocess.run(
            [sys.executable, "-c", _JOIN, address],
            capture_output=True,
            text=True,
            timeout=JOIN,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(address, f"it did not let us join within {JOIN:.0f} s") from error
    if done.returncode:
        said = done.stdout.strip() or done.stderr.strip()[-300:]
        denied = "AuthToken" in done.stderr or "authentication token" in done.stdout
        raise _denied(address) if denied else _refused(address, said)


def _denied(address: str) -> InputError:
    """The message for a cluster that demands a token, by what is set here."""
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    known = known or Path("~/.ray/auth_token").expanduser().is_file()
    copy = (
        "copy the file ~/.ray/auth_token of the cluster's head to the same place here, or name a "
        "copy of it in RAY_AUTH_TOKEN_PATH"
    )
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        matter = "RAY_AUTH_MODE is not set to token here"
        advice = "set RAY_AUTH_MODE=token" + ("" if known else f", and {copy}")
    elif known:
        matter, advice = "the token that is set here is not the cluster's", copy
    else:
        matter, advice = "there is no token here", copy
    return InputError(
        f"--address {address}: the Ray cluster there demands a token, and {matter}; {advice}. Keep "
        "the token itself out of scripts and command lines"
    )


def _refused(address: str | None, why: str) -> InputError:
    why = masked(why)
    if address is None:
        return InputError(f"Ray cannot be started on this machine: {why[:400]}")
    if "mismatch" in why:
        return InputError(
            f"--address {address}: {why} Install the cluster's versions here, or ours there"
        )
    return InputError(
        f"--address {address}: no Ray cluster answers there ({why[:400]}); start one with `ray "
        f"start --head`, or leave --address out to use this machine alone"
    )


def sizes_of(experiment: Experiment) -> Sizes:
    """Return what trials and actors get on this cluster.

    Raises InputError for a fraction that wastes the GPU and for more than any single node has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(n.get("GPU", 0) for n in nodes)
    asked = experiment.resources
    trial = _size("trial", asked.cpus_per_trial, asked.gpus_per_trial, asked.trial, nodes, gpus)
    actor = _size("actor", asked.cpus_per_actor, asked.gpus_per_actor, asked.actor, nodes, gpus)
    fit = _how_many(trial, nodes)
    limit = min(fit, asked.concurrent_trials or fit)
    actors = _how_many(actor, nodes) if asked.actors == "auto" else asked.actors
    return Sizes(trial, limit, actor, actors)


def _size(
    what: str,
    cpus: float,
    gpus: float | str,
    custom: Mapping[str, Any],
    nodes: list[dict[str, float]],
    available: float,
) -> dict[str, float]:
    gpus = (1.0 if available else 0.0) if gpus == "auto" else float(gpus)
    if 0 < gpus < 1 and 1 - gpus * _per_gpu(gpus) > WASTE:
        raise InputError(
            f"resources.gpus_per_{what} = {gpus:g}: a fraction must be 1/2, 1/3, 1/4 …, rounded "
            f"down; "
            f"of {gpus:g} only {_per_gpu(gpus)} fit on a GPU, and the rest of it would idle"
        )
    if gpus > 1 and not float(gpus).is_integer():
        raise InputError(f"resources.gpus_per_{what} = {gpus:g}: above 1 it must be a whole number")
    most = max((n.get("GPU", 0.0) for n in nodes), default=0.0)
    if gpus > most:
        raise InputError(
            f"resources.gpus_per_{what} = {gpus:g}: no node has more than {most:g} GPUs; ask for "
            f"less or add nodes"
        )
    most = max((n.get("CPU", 0.0) for n in nodes), default=0.0)
    if cpus > most:
        raise InputError(
            f"resources.cpus_per_{what} = {cpus:g}: no node has more than {most:g} CPUs; ask for "
            f"less"
        )
    size = {"cpu": cpus, "gpu": gpus, **custom}
    for name, amount in custom.items():
        _check_custom(f"resources.{what}", name, amount, nodes)
    if custom and _how_many({"cpu": cpus, "gpu": gpus}, nodes) and not _how_many(size, nodes):
        raise InputError(
            f"resources: no single node has cpus_per_{what} = {cpus:g}, gpus_per_{what} = {gpus:g} "
            f"and, at the same time, {', '.join(custom)}; ask for less"
        )
    if not _how_many(size, nodes):
        raise InputError(
            f"resources: cpus_per_{what} = {cpus:g} and gpus_per_{what} = {gpus:g}: "
            "no single node has both; ask for less"
        )
    return size


def _check_custom(place: str, name: str, amount: float, nodes: list[dict[str, float]]) -> None:
    """Raise InputError unless a node offers as much of a custom resource."""
    most = max((node.get(name, 0.0) for node in nodes), default=0.0)
    if amount <= most:
        return
    usual = ("CPU", "GPU", "memory", "object_store_memory")
    offered = sorted({key for node in nodes for key in node} - set(usual))
    offered = [key for key in offered if not key.startswith("node:")]
    here = f"no node has more than {most:g} of it" if most else "no node of the cluster offers it"
    raise InputError(
        f"{place}: {name} = {amount:g}: {here}; the nodes offer {', '.join(offered) or 'none'} "
        f"beside CPUs and GPUs. Start one with `ray start --resources='{{\"{name}\": 1}}'`, or ask "
        "for less"
    )


def _per_gpu(gpus: float) -> int:
    """The number of a fraction that fit on one GPU; Ray rounds down to ten-thousandths."""
    return 10_000 // max(int(gpus * 10_000 + 1e-6), 1)


def _how_many(size: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """The number of this size that fit on the nodes at once."""
    count = 0
    for node in nodes:
        by = [node.get("CPU", 0) // size["cpu"]]
        if size["gpu"]:
            per_gpu = _per_gpu(size["gpu"]) if size["gpu"] < 1 else 1 / size["gpu"]
            by.append(int(node.get("GPU", 0) * per_gpu))
        for name in size.keys() - {"cpu", "gpu"}:
            by.append((node.get(name, 0.0) + 1e-9) // size[name])
        count += int(min(by))
    return count
