"""The checks, area by area: models, distance, metrics, memory, extras, machine, storage.

Nothing is written, and nothing is downloaded: what is only named by a URL or a hub id counts as
missing until it is in the cache of this machine. Machine and files are those that `doctor` runs on;
on a cluster, run it on a node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from ..core.errors import InputError
from ..core.learning.config import CHECKPOINTING
from ..core.lpips import MIN_SIDE, TRUNK_FILES, default_trunk
from ..core.memory import free_memory
from ..experiment.plan import Plan
from ..experiment.settings import Experiment, ModelSettings
from ..metrics.extractors import content_hash, open_extractor, read_reference
from ..models import Model
from ..models.edm.download import cached_path
from ..models.loaded import read_lines
from ..schedule.sampling import in_loss_space
from ..tasks.opened import distance_of, model_of
from .footprint import Footprint, footprint, pairs_bytes, readable
from .output_folder import existing, storage_checks
from .sources import where_from

Status = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Check:
    """One line of the checklist; `remedy` says what to do where it is not ok. A note does not stop
    an experiment.
    """

    area: str
    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine(experiment: Experiment, output: str | None = None) -> Iterator[Check]:
    """Check an experiment, and where its results are to go; yields each check as soon as it is
    made.
    """
    opened: dict[str, Model] = {}
    for model in experiment.models:
        yield from _model(model, opened)
    whole = len(opened) == len(experiment.models)
    hashes, conditionings = (
        {n: getattr(o, key) for n, o in opened.items()} for key in ("hash", "conditioning")
    )
    plan = Plan(
        experiment,
        dict.fromkeys((m.label for m in experiment.models), "unknown") | hashes,
        conditionings,
    )
    fingerprint = plan.fingerprint if whole else "unknown until every model is there"
    yield Check("models", "fingerprint of the experiment", "ok" if whole else "note", fingerprint)
    yield from _distances(experiment, opened)
    yield from _metrics(experiment, opened)
    yield from _memory(plan, opened, output)
    yield from _extras(experiment)
    yield from _machine(experiment)
    if output is not None:
        yield from _storage(output, plan.fingerprint if whole else None)


def _model(model: ModelSettings, opened: dict[str, Model]) -> Iterator[Check]:
    for key, file in (("prompts", model.prompts), ("classes", model.classes)):
        if file:
            try:
                lines = len(read_lines(file, key).split("\n" if key == "prompts" else None))
                yield Check(
                    "models", f"{model.label}, {key}", "ok", f"{file}, {lines} lines, {_hash(file)}"
                )
            except InputError as error:
                yield Check("models", f"{model.label}, {key}", "missing", str(error))
    kind, _, rest = model.model.partition(":")
    try:
        found = model_of(_from_cache(model, kind, rest), "cpu")
    except (InputError, ImportError) as error:
        place = where_from(rest)
        yield Check(
            "models",
            model.label,
            "missing",
            str(error),
            "" if place.split(" ")[-1] in str(error) else place,
        )
        return
    opened[model.label] = replace(found, id=model.model)
    count = found.settings.get("parameters")
    facts = [f"{count / 1e6:.1f} M parameters"] if count else []
    facts += [f"sha256 {found.hash[:12]}…", f"conditioned on {found.conditioning}"]
    facts += [f"guidance {found.guidance:g}"] if found.guidance not in (None, 1.0) else []
    yield Check("models", model.label, "ok", ", ".join(facts))


def _from_cache(model: ModelSettings, kind: str, rest: str) -> ModelSettings:
    """The model as it lies on this machine; InputError where it would have to be downloaded first."""
    if (
        kind == "edm"
        and rest.startswith(("http://", "https://"))
        and not cached_path(rest).is_file()
    ):
        raise InputError(
            f"{rest} is not in the cache yet; a sweep downloads it, or put it at "
            f"{cached_path(rest)}"
        )
    if (
        kind == "diffusers"
        and not Path(rest).expanduser().is_dir()
        and not rest.startswith(("/", ".", "~"))
    ):
        import huggingface_hub

        try:
            folder = huggingface_hub.snapshot_download(rest, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(
                f"hub id {rest} is not in the cache yet; a sweep downloads it where there is a "
                f"network, or download it "
                "elsewhere and give its folder"
            ) from error
        return model.model_copy(update={"model": f"diffusers:{folder}", "name": model.label})
    return model


def _distances(experiment: Experiment, opened: dict[str, Model]) -> Iterator[Check]:
    for name in experiment.distances:
        if not name.startswith("lpips"):
            yield Check("distance", name, "ok", "needs no files")
            continue
        net = name.partition("-")[2] or "vgg"
        file = (
            Path(experiment.lpips.trunk).expanduser()
            if experiment.lpips.trunk
            else default_trunk(net)
        )
        if not file.is_file():
            place = where_from(TRUNK_FILES[net])
            yield Check(
                "distance", name, "missing", f"its network's weights {file} are not there", place
            )
        else:
            digest = content_hash(str(file))
            known = (
                file.name.rpartition("-")[2].removesuffix(".pth")
                if file.name in TRUNK_FILES.values()
                else ""
            )
            if digest.startswith(known):
                yield Check("distance", name, "ok", f"{file}, sha256 {digest[:12]}…")
            else:
                detail = f"{file} is damaged: sha256 {digest[:12]}… does not start with {known}"
                yield Check("distance", name, "missing", detail, where_from(file.name))
        for label, model in opened.items():
            side = min(model.image_shape[-2:])
            if side < MIN_SIDE[net] and not experiment.lpips.upsample:
                detail = f"{label} makes images of {side} pixels, {name} needs {MIN_SIDE[net]}"
                yield Check(
                    "distance",
                    name,
                    "missing",
                    detail,
                    "set lpips: {upsample: true}, or use distance: l2",
                )


def _metrics(experiment: Experiment, opened: dict[str, Model]) -> Iterator[Check]:
    asked = experiment.evaluate
    if not asked.samples:
        yield Check("metrics", "evaluation", "note", "none: evaluate.samples is 0")
        return
    name, size = asked.extractor, None
    if name.startswith("inception:"):
        from ..metrics.inception import FEATURES, open_inception

        size = FEATURES
        try:
            digest = open_inception(name.partition(":")[2]).hash
            yield Check("metrics", "extractor", "ok", f"{name}, sha256 {digest[:12]}…")
        except InputError as error:
            yield Check("metrics", "extractor", "missing", str(error))
    for label, model in opened.items() if size is None else ():
        try:
            extractor = open_extractor(name, model)
            detail = (
                "none; the distance to the teacher is measured alone"
                if extractor is None
                else extractor.name
            )
            yield Check(
                "metrics", f"extractor of {label}", "note" if extractor is None else "ok", detail
            )
        except InputError as error:
            yield Check("metrics", f"extractor of {label}", "missing", str(error))
    if asked.reference not in ("auto", "teacher"):
        try:
            found = len(read_reference(asked.reference).moments.mean)
        except InputError as error:
            yield Check("metrics", "reference", "missing", str(error), where_from(asked.reference))
            return
        fits = size is None or found == size
        detail = f"{asked.reference}, {found} features, {_hash(asked.reference)}"
        remedy = f"the extractor makes {size}: give statistics of the same extractor"
        yield Check(
            "metrics", "reference", "ok" if fits else "missing", detail, "" if fits else remedy
        )


def _memory(plan: Plan, opened: dict[str, Model], output: str | None) -> Iterator[Check]:
    experiment, disk = plan.experiment, 0
    for model in experiment.models:
        if (found := opened.get(model.label)) is None:
            yield Check("memory", model.label, "note", "unknown until the model is there")
            continue
        disk += pairs_bytes(plan, model, found)
        try:
            distance = distance_of(plan, experiment.distance, model, "cpu")
        except InputError:
            distance = None
        try:
            size = footprint(in_loss_space(found, plan.experiment.loss_space), distance)
        # a user's network may do anything that has no shape-only version
        except Exception as error:  # noqa: BLE001
            yield Check(
                "memory", model.label, "note", f"cannot be estimated ({type(error).__name__})"
            )
            continue
        without = "" if distance else "; without the distance's network"
        yield _learning_step(plan, model, size, without)
    if opened:
        count = "" if len(opened) == len(experiment.models) else " (of the models that are there)"
        yield from _disk(disk, count, output)


def _learning_step(plan: Plan, model: ModelSettings, size: Footprint, without: str) -> Check:
    """What a step of learning takes, with the activations kept or made again as
    `learn.checkpointing` has it.
    """
    nfe = max(plan.experiment.nfe)
    cell = next(cell for cell in plan.cells if cell.model == model)
    trials = [plan.trial(cell, point) for point in plan.grid_points()]
    samples = max(
        len(trial.members) * min(trial.config.batch, plan.experiment.pairs.train)
        for trial in trials
    )
    asked = {trial.config.checkpointing for trial in trials}
    kept, again = size.step(samples, nfe), size.step(samples, nfe, recomputed=True)
    words = {
        "never": f"{readable(kept)}, activations kept",
        "always": f"{readable(again)}, activations made again",
        "auto": f"{readable(kept)} with activations kept, {readable(again)} where they do not "
        f"fit and are made again",
    }
    text = " or ".join(
        f"{words[mode]} (checkpointing: {mode})" for mode in CHECKPOINTING if mode in asked
    )
    detail = f"weights {readable(size.weights)}; learning {samples} samples at {nfe} evaluations: {text}{without}"
    gpu = torch.cuda.is_available()
    free = (
        torch.cuda.get_device_properties(0).total_memory
        if gpu
        else free_memory(torch.device("cpu"))
    )
    need = kept if "never" in asked else again
    if need <= free:
        return Check("memory", model.label, "ok", detail)
    here = f"{'the GPU has' if gpu else 'free here are'} {readable(free)}"
    if size.step(1, nfe, recomputed="never" not in asked) <= free:
        remedy = f"{here}: samples go through in smaller parts, which takes longer; or a smaller learn.batch"
    else:
        remedy = (
            f"{here}, too little for one sample: learn: {{checkpointing: always}}, a smaller "
            "dtype, another device"
        )
    return Check("memory", model.label, "note", detail, remedy)


def _disk(need: int, count: str, output: str | None) -> Iterator[Check]:
    detail = f"{readable(need)}{count}"
    if output is None or "://" in output:
        yield Check("memory", "pairs on disk", "ok", detail)
        return
    free = shutil.disk_usage(existing(Path(output))).free
    fits = free > need
    detail += f"; {readable(free)} are free"
    yield Check(
        "memory",
        "pairs on disk",
        "ok" if fits else "missing",
        detail,
        "" if fits else "use another --output",
    )


def _extras(experiment: Experiment) -> Iterator[Check]:
    wanted: dict[str, str] = {}
    kinds = {model.model.partition(":")[0] for model in experiment.models}
    if "diffusers" in kinds:
        wanted |= dict.fromkeys(("diffusers", "transformers", "accelerate"), "ld3_dist[diffusers]")
    if any(name.startswith("lpips") for name in experiment.distances):
        wanted |= {"lpips": "lpips", "torchvision": "torchvision"}
    if experiment.evaluate.extractor.startswith("inception:"):
        wanted["torch_fidelity"] = "ld3_dist[metrics]"
    trackers = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
    wanted |= {
        trackers[name]: trackers[name]
        for name in experiment.resources.callbacks
        if name in trackers
    }
    for package, source in wanted.items():
        try:
            found = version(package.replace("_", "-")) if find_spec(package) else None
        except PackageNotFoundError:
            found = "of unknown version"
        status: Status = "ok" if found else "missing"
        yield Check(
            "extras",
            package,
            status,
            found or "not installed",
            "" if found else f"pip install '{source}'",
        )


def _machine(experiment: Experiment) -> Iterator[Check]:
    asked, count = experiment.resources, torch.cuda.device_count()
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(count)}))
    wanted = max(float(v) for v in (asked.gpus_per_trial, asked.gpus_per_actor, 0) if v != "auto")
    enough = count >= wanted
    remedy = (
        ""
        if enough
        else f"resources ask for {wanted:g}: run doctor on a node that has them, or ask for less"
    )
    yield Check(
        "machine", "GPUs", "ok" if enough else "missing", f"{count} {names}".strip(), remedy
    )
    cpus, wanted = os.cpu_count() or 1, max(asked.cpus_per_trial, asked.cpus_per_actor)
    enough = cpus >= wanted
    remedy = (
        ""
        if enough
        else f"resources ask for {wanted:g}: run doctor on a node that has them, or ask for less"
    )
    yield Check("machine", "CPUs", "ok" if enough else "missing", str(cpus), remedy)


def _storage(output: str, fingerprint: str | None) -> Iterator[Check]:
    for name, status, detail, remedy in storage_checks(output, fingerprint):
        yield Check("storage", name, status, detail, remedy)  # type: ignore[arg-type]


def _hash(file: str) -> str:
    return f"sha256 {content_hash(file)[:12]}…"
