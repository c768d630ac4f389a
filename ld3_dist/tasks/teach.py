"""The teacher's pairs of a model, a shard at a time.

Shards are fixed index ranges, but a range may have been longer or shorter in an earlier version of
the experiment. So the shards that are there are taken as they are, and only the gaps are made.
"""

from __future__ import annotations

from typing import Any

from ..core.denoiser import map_condition
from ..core.errors import InputError
from ..experiment.plan import Plan
from ..experiment.sections import ModelSettings
from ..schedule.teaching import Teacher, teach
from ..store.pairs import (
    BadShard,
    Manifest,
    ShardRecord,
    named_ranges,
    pack_condition,
    read_shard,
    shard_name,
    write_shard,
)
from ..store.storage import Storage
from .opened import model_of, pairs_folder

Range = tuple[int, int]


def make_shard(
    plan: Plan,
    settings: ModelSettings,
    storage: Storage,
    start: int,
    stop: int,
    device: str | None = None,
    teacher: Teacher | None = None,
) -> ShardRecord:
    """Generate and write the pairs of the samples [start, stop).

    Args:
        teacher: the experiment's own if not given.

    Raises Diverged where the teacher produced something that is not finite, and InputError for a
    model or prompts that are not the driver's.
    """
    model, e = model_of(settings, device), plan.experiment
    if model.hash != plan.hash_of(settings):
        raise InputError(
            f"model {settings.label}: its weights here are not those of the driver; "
            "install the same everywhere"
        )
    if model.conditioning != (plan.conditioning_of(settings) or model.conditioning):
        raise InputError(
            f"model {settings.label}: its prompts or classes here are not the driver's; "
            "copy the same file everywhere"
        )
    pairs = teach(
        model,
        seed=e.seed,
        teacher=teacher or plan.teacher,
        space=e.loss_space,
        batch=e.resources.batch,
        indices=range(start, stop),
    ).to("cpu")
    tensors = {"noise": pairs.noise, "target": pairs.target.float()}
    tensors |= pack_condition(map_condition(lambda c: c.cpu(), pairs.condition))
    folder = pairs_folder(plan, settings, storage, teacher)
    return write_shard(folder, start, stop, tensors, plan.teacher_meta(settings, teacher))


def make_shard_if_missing(
    plan: Plan,
    settings: ModelSettings,
    storage: Storage,
    start: int,
    stop: int,
    device: str | None = None,
    teacher: Teacher | None = None,
) -> None:
    """Do what `make_shard` does, unless another driver has done it meanwhile."""
    folder = pairs_folder(plan, settings, storage, teacher)
    try:
        read_shard(folder, shard_name(start, stop), plan.teacher_meta(settings, teacher))
    except (BadShard, FileNotFoundError):
        make_shard(plan, settings, storage, start, stop, device, teacher)


def survey(
    plan: Plan,
    settings: ModelSettings,
    storage: Storage,
    teacher: Teacher | None = None,
    verify: bool = True,
) -> tuple[list[ShardRecord], list[Range], list[BadShard]]:
    """(shards that serve the plan, ranges to make, shards that were rejected).

    Every range of samples is walked through from its start: the longest good shard that begins
    there is taken; where there is none, the next stretch up to a multiple of the shard size is to
    be made. So a range that has grown keeps its shards, and one that has shrunk is complete.

    Args:
        verify: read every shard; if false, a name is enough and the records have no hashes.
    """
    folder, meta = pairs_folder(plan, settings, storage, teacher), plan.teacher_meta
    about, size = meta(settings, teacher), plan.experiment.resources.shard
    there: dict[int, list[int]] = {}
    for start, stop in sorted(named_ranges(folder)):
        there.setdefault(start, []).append(stop)
    good: list[ShardRecord] = []
    missing: list[Range] = []
    bad: list[BadShard] = []
    for start, stop in plan.sample_ranges(teacher):
        at = start
        while at < stop:
            found = None
            while found is None and there.get(at):
                name, end = shard_name(at, there[at][-1]), there[at].pop()
                if not verify:
                    found = ShardRecord(name, at, end, "", 0)
                    break
                try:
                    found, _ = read_shard(folder, name, about)
                except BadShard as reason:
                    bad.append(reason)
            if found is not None:
                good.append(found)
                at = found.stop
                continue
            end = min(start + ((at - start) // size + 1) * size, stop)
            missing.append((at, end))
            at = end
    return good, missing, bad


def missing_shards(
    plan: Plan, settings: ModelSettings, storage: Storage, teacher: Teacher | None = None
) -> tuple[list[Range], list[str]]:
    """Ranges still to make, and why files that are there were rejected.

    Where nothing is missing, write or check the manifest with `seal`.
    """
    _, missing, bad = survey(plan, settings, storage, teacher)
    return missing, [str(one) for one in bad]


def _sealed(folder: Storage) -> Manifest | None:
    """The manifest that is there; None for a damaged one, which will be written again."""
    try:
        return Manifest.load(folder)
    except (InputError, ValueError, AttributeError):
        return None


def seal(
    plan: Plan, settings: ModelSettings, storage: Storage, teacher: Teacher | None = None
) -> dict[str, Any]:
    """Write the manifest of a complete set of pairs, from the files themselves.

    Raises InputError where shards are missing.
    """
    folder = pairs_folder(plan, settings, storage, teacher)
    good, missing, _ = survey(plan, settings, storage, teacher)
    if missing:
        raise InputError(
            f"{folder.url}: shards {tuple(missing)} are missing; run the teach stage again"
        )
    manifest = Manifest(plan.teacher_meta(settings, teacher), tuple(good))
    if _sealed(folder) != manifest:
        manifest.save(folder)
    return {"shards": len(good), "bytes": sum(shard.bytes for shard in good)}
