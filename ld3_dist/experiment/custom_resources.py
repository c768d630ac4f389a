"""Resources of a cluster beside CPUs and GPUs, as a trial or an actor asks for them.

    resources:
      trial: {accelerator_type: A100}       # a node with such a card
      actor: {license: 1, big-memory: 0.5}  # of `ray start --resources='{"license": 4}'`

Ray calls a kind of accelerator `accelerator_type:A100`, of which every node with such cards offers
1, and a task takes a thousandth."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

ACCELERATOR = "accelerator_type"
SHARE = 0.001
"""The amount of a kind of accelerator that marks a need for its presence."""

LONGEST = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_ELSEWHERE = {
    "cpu": "cpus_per_{}",
    "gpu": "gpus_per_{}",
    "num_cpus": "cpus_per_{}",
    "num_gpus": "gpus_per_{}",
}
_RAYS_OWN = ("memory", "object_store_memory", "bundle", "node")


def checked(given: Mapping[str, Any]) -> dict[str, float]:
    """Resources by Ray's names. Raises ValueError, naming the key, for what Ray could not give."""
    made = {}
    for name, amount in given.items():
        if name == ACCELERATOR:
            if not isinstance(amount, str) or not _NAME.fullmatch(amount):
                raise ValueError(f"{name!r} = {amount!r}: give a kind of accelerator, such as A100")
            made[f"{ACCELERATOR}:{amount}"] = SHARE
            continue
        _check_name(name)
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise ValueError(f"{name!r} = {amount!r}: give an amount, such as 1")
        if not (math.isfinite(amount) and amount > 0):
            raise ValueError(f"{name!r} = {amount!r}: must be positive; leave it out if not needed")
        if amount > 1 and amount != int(amount):
            raise ValueError(f"{name!r} = {amount!r}: above 1 it must be a whole number")
        if amount < 1e-4:
            raise ValueError(f"{name!r} = {amount!r}: Ray counts in ten-thousandths; give more")
        made[name] = float(amount)
    return made


def _check_name(name: str) -> None:
    if name.lower() in _ELSEWHERE:
        other = " or ".join(_ELSEWHERE[name.lower()].format(what) for what in ("trial", "actor"))
        raise ValueError(f"{name!r} has a key of its own, resources.{other}")
    if name.partition(":")[0].partition("_group")[0] in _RAYS_OWN:
        raise ValueError(
            f"{name!r} is Ray's own; give resources that nodes offer by your own names"
        )
    if len(name) > LONGEST or not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r}: a resource's name has letters, digits and . _ : - (at most {LONGEST}) and "
            "begins with a letter or a digit"
        )


CustomResources = Annotated[dict[str, Any], AfterValidator(checked)]
"""A mapping of names to amounts in YAML; by Ray's names once it is read."""
