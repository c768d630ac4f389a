"""The list of all checks of an experiment, and the checks of models, distances and metrics.

Nothing is downloaded: a model that is named by a URL or a hub id counts as missing until it is in
the cache of this machine. A network is called once, as `models.probe` says; nothing is learned.
`doctor` checks the machine that it runs on: for a cluster, run it on a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..core.errors import InputError
from ..core.lpips import MIN_SIDE, TRUNK_FILES, default_trunk
from ..core.text import read_lines
from ..experiment.sections import ModelSettings
from ..experiment.settings import Experiment
from ..metrics.extractors import open_extractor, read_reference
from ..metrics.judges import judge_name, open_judges
from ..models import Model
from ..models.compiling import check_compiler
from ..models.edm.download import cached_path
from ..models.weights import sha256_of
from ..schedule.noise import check_writable
from ..schedule.provenance import default_device
from ..tasks.opened import model_of
from ..tasks.planning import plan_of
from .check import Check
from .machine import PACKAGED, extra_checks, machine_checks
from .memory import memory_checks
from .output_folder import storage_checks
from .sources import where_from


def examine(experiment: Experiment, output: str | None = None) -> Iterator[Check]:
    """Check an experiment, and the place for its results if one is given.

    Every check is yielded as soon as it is made.
    """
    opened: dict[str, Model] = {}
    for model in experiment.models:
        yield from _model(model, opened)
    whole = len(opened) == len(experiment.models)
    labels = [model.label for model in experiment.models]
    hashes = dict.fromkeys(labels, "unknown") | {n: model.hash for n, model in opened.items()}
    plan = plan_of(experiment, hashes, opened)
    fingerprint = plan.fingerprint if whole else "unknown until every model is there"
    yield Check("models", "fingerprint of the experiment", "ok" if whole else "note", fingerprint)
    for name in experiment.every_distance:
        yield from _distance(name, experiment, opened)
    yield from _metrics(experiment, opened)
    yield from memory_checks(plan, opened, output)
    yield from extra_checks(experiment)
    yield from machine_checks(experiment)
    if output is not None:
        yield from storage_checks(output, plan.fingerprint if whole else None)


def _model(model: ModelSettings, opened: dict[str, Model]) -> Iterator[Check]:
    """Check a model with its texts; a model that can be used is added to `opened`."""
    if model.prompts:
        yield _text(f"{model.label}, prompts", model.prompts, "prompts", "a file of prompts")
    if model.classes:
        yield _text(f"{model.label}, classes", model.classes, "classes", "a file of classes")
    kind, _, rest = model.model.partition(":")
    try:
        found = model_of(_from_cache(model, kind, rest), "cpu")
        check_writable(found.noise)
    except (InputError, ImportError) as error:
        place = where_from(rest)
        known = place.split(" ")[-1] in str(error)
        yield Check("models", model.label, "missing", str(error), "" if known else place)
        return
    opened[model.label] = replace(found, id=model.model)
    yield Check("models", model.label, "ok", _facts(found))
    if model.dtype in ("float8", "int8"):
        detail = f"kept in {model.dtype} and cast up where they are used: a quarter of the memory "
        detail += "of float32, for more time; gradients pass, so that schedules can be learned"
        yield Check("models", f"{model.label}, weights", "note", detail)
    yield from _probe(model.label, found)
    if model.compile:
        yield _compiler(model.label)


def _compiler(label: str) -> Check:
    """Check that torch.compile works here, as the model asks for it."""
    device = default_device()
    try:
        check_compiler(device)
    except InputError as error:
        return Check("models", f"{label}, compile", "missing", str(error))
    return Check("models", f"{label}, compile", "ok", f"torch.compile works on {device}")


def _text(name: str, file: str, entries: str, what: str) -> Check:
    """Check a text file, and count its prompts (one per line) or classes (one per word)."""
    try:
        lines = read_lines(file, what)
    except InputError as error:
        return Check("models", name, "missing", str(error))
    count = len(lines) if entries == "prompts" else len(" ".join(lines).split())
    return Check("models", name, "ok", f"{file}, {entries}: {count}, {_hash(file)}")


def _facts(model: Model) -> str:
    """Words about a model: its size, hash, condition and guidance."""
    count = model.settings.get("parameters")
    facts = [f"{count / 1e6:.1f} M parameters"] if count else []
    facts += [f"sha256 {model.hash[:12]}…", f"conditioned on {model.conditioning}"]
    facts += [f"guidance {model.guidance:g}"] if model.guidance not in (None, 1.0) else []
    return ", ".join(facts)


def _probe(label: str, model: Model) -> Iterator[Check]:
    """Notes on what calling the network has shown; faults have been raised at opening."""
    if model.probe is None or not model.probe.called:
        detail = "was not called: too large for the CPU; a sweep calls it before it learns"
        yield Check(
            "models", f"{label}, network", "note", detail, "run doctor on a node with a GPU"
        )
    elif not model.time_gradient:
        detail = "has no gradient with respect to time: knots are learned, network times are not"
        remedy = "keep time a floating-point tensor in the network (no .long() or .round())"
        yield Check("models", f"{label}, network", "note", detail, remedy)


def _from_cache(model: ModelSettings, kind: str, rest: str) -> ModelSettings:
    """The model as it lies on this machine; InputError if it would have to be downloaded first."""
    url = rest.startswith(("http://", "https://"))
    if kind == "edm" and url and not cached_path(rest).is_file():
        raise InputError(
            f"{rest} is not in the cache yet; a sweep downloads it, or put it at "
            f"{cached_path(rest)}"
        )
    local = rest.startswith(("/", ".", "~")) or Path(rest).expanduser().is_dir()
    if kind != "diffusers" or local:
        return model
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(rest, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"hub id {rest} is not in the cache yet; a sweep downloads it if there is a network, "
            "or download it elsewhere and give its folder"
        ) from error
    return model.model_copy(update={"model": f"diffusers:{folder}", "name": model.label})


def _distance(name: str, experiment: Experiment, opened: dict[str, Model]) -> Iterator[Check]:
    """Check a distance: its network's weights, and the size of the images it compares."""
    if not name.startswith("lpips"):
        packaged = any(part in name for part in PACKAGED)
        detail = "its weights are those of a package, see extras" if packaged else "needs no files"
        yield Check("distance", name, "ok", detail)
        return
    net = name.partition("-")[2] or "vgg"
    given = experiment.lpips.trunk
    yield _trunk(name, net, Path(given).expanduser() if given else default_trunk(net))
    for label, model in opened.items():
        side = min(model.image_shape[-2:])
        if side < MIN_SIDE[net] and not experiment.lpips.upsample:
            detail = f"{label} makes images of {side} pixels, {name} needs {MIN_SIDE[net]}"
            remedy = "set lpips: {upsample: true}, or use distance: l2"
            yield Check("distance", name, "missing", detail, remedy)


def _trunk(name: str, net: str, file: Path) -> Check:
    """Check the weights file of an LPIPS trunk; a published file's name holds its hash."""
    if not file.is_file():
        detail = f"its network's weights {file} are not there"
        return Check("distance", name, "missing", detail, where_from(TRUNK_FILES[net]))
    digest, known = sha256_of(file), ""
    if file.name in TRUNK_FILES.values():
        known = file.name.rpartition("-")[2].removesuffix(".pth")
    if digest.startswith(known):
        return Check("distance", name, "ok", f"{file}, sha256 {digest[:12]}…")
    detail = f"{file} is damaged: sha256 {digest[:12]}… does not start with {known}"
    return Check("distance", name, "missing", detail, where_from(file.name))


def _metrics(experiment: Experiment, opened: dict[str, Model]) -> Iterator[Check]:
    """Check the extractor and the reference of the evaluation."""
    asked = experiment.evaluate
    if not asked.samples:
        yield Check("metrics", "evaluation", "note", "none: evaluate.samples is 0")
        return
    size = None
    if asked.extractor.startswith("inception:"):
        from ..metrics.inception import FEATURES

        size = FEATURES
        yield _inception(asked.extractor)
    else:
        for label, model in opened.items():
            yield _extractor(asked.extractor, label, model)
    for metric in asked.metrics or ():
        if judge_name(metric) is not None:
            yield _judge(metric)
    if asked.reference not in ("auto", "teacher"):
        yield _reference(asked.reference, size)


def _judge(metric: str) -> Check:
    """Check the weights of a metric of images and prompts."""
    try:
        found = open_judges([metric])
    except InputError as error:
        return Check("metrics", metric, "missing", str(error))
    if not found:
        remedy = f"name the folder of its weights: {metric}:DIR"
        return Check("metrics", metric, "note", "is left empty: no weights are named", remedy)
    (judge,) = found.values()
    return Check("metrics", metric, "ok", f"sha256 {judge.hash[:12]}…")


def _inception(name: str) -> Check:
    from ..metrics.inception import open_inception

    try:
        digest = open_inception(name.partition(":")[2]).hash
    except InputError as error:
        return Check("metrics", "extractor", "missing", str(error))
    return Check("metrics", "extractor", "ok", f"{name}, sha256 {digest[:12]}…")


def _extractor(name: str, label: str, model: Model) -> Check:
    try:
        extractor = open_extractor(name, model)
    except InputError as error:
        return Check("metrics", f"extractor of {label}", "missing", str(error))
    if extractor is None:
        detail = "none; the distance to the teacher is measured alone"
        return Check("metrics", f"extractor of {label}", "note", detail)
    return Check("metrics", f"extractor of {label}", "ok", extractor.name)


def _reference(file: str, size: int | None) -> Check:
    """Check a file of statistics.

    Args:
        size: number of features of the extractor; None if it is not known.
    """
    try:
        found = len(read_reference(file).moments.mean)
    except InputError as error:
        return Check("metrics", "reference", "missing", str(error), where_from(file))
    detail = f"{file}, {found} features, {_hash(file)}"
    if size is None or found == size:
        return Check("metrics", "reference", "ok", detail)
    remedy = f"the extractor makes {size}: give statistics of the same extractor"
    return Check("metrics", "reference", "missing", detail, remedy)


def _hash(file: str) -> str:
    return f"sha256 {sha256_of(file)[:12]}…"
