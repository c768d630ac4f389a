"""A shard of teacher pairs: noise of fixed samples, and what the teacher makes of it."""

from __future__ import annotations

from typing import Any

import torch

from ..core.denoiser import map_condition
from ..core.errors import InputError
from ..core.learning.learn import Pairs
from ..core.sample import draw_noise
from ..experiment.plan import Plan
from ..experiment.settings import ModelSettings
from ..models import Model
from ..store.pairs import Manifest, ShardRecord, pack_condition, survey, write_shard
from ..store.storage import Storage
from .context import make_samples, open_settings, teacher_tableau
from .space import in_loss_space


def make_shard(
    plan: Plan,
    model: ModelSettings,
    storage: Storage,
    start: int,
    stop: int,
    device: str | None = None,
) -> ShardRecord:
    """Generate and write the pairs of the samples [start, stop).

    Raises BadShard where the teacher produced something that is not finite.
    """
    opened = in_loss_space(plan, open_settings(model, device))
    if opened.hash != plan.model_hashes[model.label]:
        raise InputError(
            f"model {model.label}: its weights here are not those of the driver; install the "
            f"same everywhere"
        )
    if opened.conditioning != plan.conditionings.get(model.label, opened.conditioning):
        raise InputError(
            f"model {model.label}: its prompts or classes here are not the driver's; copy the "
            f"same file everywhere"
        )
    place = storage.child(f"pairs/{plan.teacher_key(model)}")
    seed, indices = plan.experiment.seed, range(start, stop)
    noise = draw_noise(seed, indices, tuple(opened.denoiser.shape))
    condition = opened.draw_condition(seed, indices)
    home = device or next_device(opened)
    tableau = teacher_tableau(plan, opened)
    pairs = Pairs(noise, torch.empty(len(noise)), condition).to(home)
    target = make_samples(opened, tableau, pairs, plan.experiment.resources.batch)
    tensors = {
        "noise": noise,
        "target": target.float(),
        **pack_condition(map_condition(lambda c: c.cpu(), condition)),
    }
    return write_shard(place, start, stop, tensors, plan.teacher_meta(model))


def next_device(opened: Model) -> str:
    """The device a model's tensors live on."""
    module = opened.denoiser
    tensor = next(
        iter([*getattr(module, "parameters", list)(), *getattr(module, "buffers", list)()]), None
    )
    return "cpu" if tensor is None else str(tensor.device)


def missing_shards(
    plan: Plan, model: ModelSettings, storage: Storage
) -> tuple[list[tuple[int, int]], list[str]]:
    """Ranges still to make, and why present files were rejected. Empty: write or check the manifest
    with `seal`.
    """
    place = storage.child(f"pairs/{plan.teacher_key(model)}")
    found = survey(place, plan.shards(), plan.teacher_meta(model))
    return list(found.missing), [str(bad) for bad in found.bad]


def seal(plan: Plan, model: ModelSettings, storage: Storage) -> dict[str, Any]:
    """Write the manifest of a complete set of pairs, from the files themselves."""
    place = storage.child(f"pairs/{plan.teacher_key(model)}")
    found = survey(place, plan.shards(), plan.teacher_meta(model))
    if found.missing:
        raise InputError(
            f"{place.url}: shards {found.missing} are missing; run the teach stage again"
        )
    manifest = Manifest(plan.teacher_meta(model), found.good)
    if Manifest.load(place) != manifest:
        manifest.save(place)
    return {"shards": len(found.good), "bytes": sum(shard.bytes for shard in found.good)}
