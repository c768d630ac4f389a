"""A schedule as a custom node of ComfyUI: a folder that is copied into `custom_nodes`.

    __init__.py     the node, `comfyui_node.py` of this package: it needs PyTorch alone
    NAME.json       the schedule, with what ComfyUI's model needs to hear, under the key `comfyui`
    README.md       how to install and connect it

`comfyui` holds, for each evaluation, alpha (1 for flow models), the noise level that ComfyUI calls
sigma, and the network's own step (null where it follows from sigma), and the noise levels of the
whole table of a network that counts steps.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from ..core.errors import InputError
from ..core.noise import VPDiscrete
from ..schedule.file import Schedule
from ..store.outputs import write_output
from .publishing import without_folders

ALPHA_MIN = 4.9e-8**0.5
"""Pure noise has an infinite level; ComfyUI gives such a network this alpha in its place."""

NOISES = ("edm", "flow", "vp-discrete")

README = """\
# {name}: a learned schedule for ComfyUI

A schedule of {nfe} network evaluations for {model}, learned with ld3_dist.

1. Copy this folder into `ComfyUI/custom_nodes` and start ComfyUI again.
2. Add the node *Learned schedule (LD3)* (sampling / custom_sampling) and choose `{name}`.
3. Connect SAMPLER and SIGMAS to *SamplerCustom*. Set cfg to {guidance:g} and take an empty latent.

It runs its own solver ({solver}), network times and coefficients included. Another model, other
guidance, other sigmas, masks and latents that are images are refused with the reason. More
schedules: export them into this folder with `--force`.
"""


def export_node(schedule: Schedule, folder: Path, name: str = "") -> Path:
    """Write the node's folder; schedules that are there already stay.

    Args:
        name: of the schedule in the node; solver and NFE if not given.

    Raises InputError for a noise schedule that no model of ComfyUI has.
    """
    body = node_schedule(schedule)
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or f"{schedule.solver}-{schedule.nfe}"
    guidance = 1.0 if schedule.guidance is None else schedule.guidance
    readme = README.format(
        name=stem,
        nfe=schedule.nfe,
        model=body["model"],
        guidance=guidance,
        solver=body["solver"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    node = Path(__file__).with_name("comfyui_node.py").read_text(encoding="utf-8")
    write_output(folder / f"{stem}.json", json.dumps(body, ensure_ascii=False) + "\n")
    write_output(folder / "README.md", readme)
    write_output(folder / "__init__.py", node)
    return folder


def node_schedule(schedule: Schedule) -> dict[str, Any]:
    """The content of a schedule for the node: the file's own, and `comfyui`."""
    kind = schedule.noise["name"]
    if kind not in NOISES:
        raise InputError(
            f"ComfyUI has no model of {kind} noise, only of {', '.join(NOISES)}; export --format "
            "sigmas instead"
        )
    noise = schedule.noise_schedule
    t = torch.tensor(schedule.evals, dtype=torch.float64)
    alpha, steps, table = torch.ones_like(t), None, None
    sigma = t
    if isinstance(noise, VPDiscrete):
        alpha = noise.alpha(t).clamp_min(ALPHA_MIN)
        sigma = (1 - alpha**2).sqrt() / alpha
        steps = noise.network_time(t).tolist()
        squares = noise.alphas_cumprod.clamp_min(ALPHA_MIN**2)
        table = ((1 - squares) / squares).sqrt().tolist()
    extra = {"alpha": alpha.tolist(), "sigmas": sigma.tolist(), "steps": steps, "table": table}
    return without_folders(json.loads(schedule.to_json())) | {"comfyui": extra}
