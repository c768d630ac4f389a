"""The teacher's pairs of a model, a shard at a time."""

from __future__ import annotations

from typing import Any

from ..core.denoiser import map_condition
from ..core.errors import InputError
from ..experiment.plan import Plan
from ..experiment.sections import ModelSettings
from ..schedule.teaching import teach
from ..store.pairs import Manifest, ShardRecord, pack_condition, survey, write_shard
from ..store.storage import Storage
from .opened import model_of


def make_shard(
    plan: Plan,
    settings: ModelSettings,
    storage: Storage,
    start: int,
    stop: int,
    device: str | None = None,
) -> ShardRecord:
    """Generate and write the pairs of the samples [start, stop).

    Raises Diverged where the teacher produced something that is not finite, and InputError for a
    model or prompts that are not the driver's.
    """
    model, e = model_of(settings, device), plan.experiment
    if model.hash != plan.model_hashes[settings.label]:
        raise InputError(
            f"model {settings.label}: its weights here are not those of the driver; "
            "install the same everywhere"
        )
    if model.conditioning != plan.conditionings.get(settings.label, model.conditioning):
        raise InputError(
            f"model {settings.label}: its prompts or classes here are not the driver's; "
            "copy the same file everywhere"
        )
    pairs = teach(
        model,
        seed=e.seed,
        teacher=plan.teacher,
        space=e.loss_space,
        batch=e.resources.batch,
        indices=range(start, stop),
    ).to("cpu")
    tensors = {"noise": pairs.noise, "target": pairs.target.float()}
    tensors |= pack_condition(map_condition(lambda c: c.cpu(), pairs.condition))
    folder = storage.child(f"pairs/{plan.teacher_key(settings)}")
    return write_shard(folder, start, stop, tensors, plan.teacher_meta(settings))


def missing_shards(
    plan: Plan, settings: ModelSettings, storage: Storage
) -> tuple[list[tuple[int, int]], list[str]]:
    """Ranges still to make, and why present files were rejected.

    Where nothing is missing, write or check the manifest with `seal`.
    """
    folder = storage.child(f"pairs/{plan.teacher_key(settings)}")
    found = survey(folder, plan.shards(), plan.teacher_meta(settings))
    return list(found.missing), [str(bad) for bad in found.bad]


def _sealed(folder: Storage) -> Manifest | None:
    """The manifest that is there; None for a damaged one, which will be written again."""
    try:
        return Manifest.load(folder)
    except (InputError, ValueError, AttributeError):
        return None


def seal(plan: Plan, settings: ModelSettings, storage: Storage) -> dict[str, Any]:
    """Write the manifest of a complete set of pairs, from the files themselves.

    Raises InputError where shards are missing.
    """
    folder = storage.child(f"pairs/{plan.teacher_key(settings)}")
    found = survey(folder, plan.shards(), plan.teacher_meta(settings))
    if found.missing:
        raise InputError(
            f"{folder.url}: shards {found.missing} are missing; run the teach stage again"
        )
    manifest = Manifest(plan.teacher_meta(settings), found.good)
    if _sealed(folder) != manifest:
        manifest.save(folder)
    return {"shards": len(found.good), "bytes": sum(shard.bytes for shard in found.good)}
