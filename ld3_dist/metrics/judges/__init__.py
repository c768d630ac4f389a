"""Judges: scores of images, most of them against their prompts, by networks from local weights.

    clip_score:DIR     100 max(cos(image, prompt), 0)          Hessel et al. 2021, arXiv 2104.08718
    pick_score:DIR     exp(logit_scale) cos(image, prompt)     Kirstain et al. 2023, 2305.01569
    hpsv2:DIR          cos(image, prompt)                      Wu et al. 2023, 2306.09341
    image_reward:DIR   a reward of people's choices            Xu et al. 2023, 2304.05977
    aesthetic:DIR      LAION's layers on CLIP's features of the image; no prompt enters

Each is the name of a metric, whose value is the mean over samples (column `metric.clip_score`). A
judge sees the images when they are sampled, as they are not kept; its scores are. Sample i has the
same prompt and noise under every schedule, so two schedules compare prompt by prompt (`prompted`).

More are registered with `@judges.register("name")`; `name:argument` then opens one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...core.errors import InputError
from ...core.features import Judge
from ...core.registry import Registry

OpenJudge = Callable[[str, str], Judge]
"""(argument, device) -> the judge."""

judges: Registry[OpenJudge] = Registry("judge")

for _name in ("clip_score", "pick_score", "hpsv2", "aesthetic"):
    judges.register(_name, lazily=f"ld3_dist.metrics.judges.clip:{_name}")
judges.register("image_reward", lazily="ld3_dist.metrics.judges.image_reward:image_reward")


def judge_name(metric: str) -> str | None:
    """The judge that the name of a metric stands for: "clip_score" of "clip_score:DIR"."""
    kind = metric.partition(":")[0]
    return kind if kind in judges else None


def open_judges(metrics: Iterable[str], device: str = "cpu") -> dict[str, Judge]:
    """The judges among the names of metrics, by name; those without an argument are left out.

    Raises InputError for weights that are missing or of another kind, and for a judge that is named
    twice.
    """
    found: dict[str, Judge] = {}
    for metric in metrics:
        name, argument = judge_name(metric), metric.partition(":")[2]
        if name is None or not argument:
            continue
        if name in found:
            raise InputError(f"metric {metric!r}: {name} has another folder too; keep one of them")
        found[name] = judges.get(name)(argument, device)
    return found
