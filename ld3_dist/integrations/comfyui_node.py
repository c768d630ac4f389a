"""ComfyUI: a learned schedule as SAMPLER and SIGMAS, for the nodes that take both (SamplerCustom).

    y_i = state_i x_T + sum_{j<i} outputs_ij m_j        m_j = D(y_j, t_j)        x_T = scale * noise

The whole table runs: step times, network times and coefficients. m_j is what ComfyUI calls the
denoised latent. It hands a sampler a model that takes x at a noise level sigma:

    flow models      x_j = y_j                sigma_j = t_j
    all others       x_j = y_j / alpha_j      sigma_j = sigma(t_j) / alpha(t_j)

and the result is y_E itself. A network that counts steps is asked at its own fractional step, which
ComfyUI would round.

The schedules are the *.json beside this file, as `ld3-dist export --format comfyui-node` writes
them. Nothing but PyTorch is needed. Refused are models, guidance and steps that a schedule was not
made for, latents that are not empty, masks, and sampling without noise: a table begins at noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent

KINDS = {
    "IMG_TO_IMG": None,
    "IMG_TO_IMG_FLOW": None,
    "IMG_TO_IMG_VELOCITY": None,
    "V_PREDICTION_DDPM": None,
    "CONST": "velocity",
    "X0": "data",
    "EDM": "edm",
    "V_PREDICTION": "v",
    "EPS": "noise",
}
"""ComfyUI's classes of predictions, each before those that it is made from -> our names."""

SAME_SIGMA = 0.02
"""Largest relative difference between two tables of the same noise levels: tables of 16 bits."""


class ScheduleError(ValueError):
    """A schedule that cannot run here; the message says what to change."""


def schedule_names() -> list[str]:
    """The schedules in this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_schedule(name: str) -> dict[str, Any]:
    """The content of a schedule of this folder."""
    try:
        found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScheduleError(f"{name}.json cannot be read ({error}); export it again") from error
    if not isinstance(found, dict) or "comfyui" not in found:
        raise ScheduleError(
            f"{name}.json was not made for ComfyUI; make it with "
            f"ld3-dist export {name}.json --format comfyui-node --out FOLDER"
        )
    return found


class LD3Sampler:
    """The SAMPLER of a schedule, in the form that ComfyUI's guiders call."""

    def __init__(self, name: str, schedule: dict[str, Any]) -> None:
        self.name, self.schedule = name, schedule

    @property
    def sigmas(self) -> torch.Tensor:
        """The SIGMAS of the schedule [NFE + 1]: the level of every evaluation, then 0."""
        return torch.tensor([*self.schedule["comfyui"]["sigmas"], 0.0])

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Integrate from noise to the sample.

        Args:
            model_wrap: (x, sigma [B], **extra_args) -> the denoised latent.
            noise: unit noise [B, …].
            callback: (step, denoised, x, number of steps) after every evaluation, or None.
        """
        self.check(model_wrap, sigmas, noise, latent_image, denoise_mask)
        file, given = self.schedule, self.schedule["comfyui"]
        sampling = model_wrap.inner_model.model_sampling
        x_T = file["prior_scale"] * noise
        y, outputs, E = x_T, [], file["nfe"]
        for j in range(E):
            level = torch.full((len(y),), given["sigmas"][j], dtype=y.dtype, device=y.device)
            with _at_step(sampling, given["steps"] and given["steps"][j]):
                outputs.append(model_wrap(y / given["alpha"][j], level, **extra_args).to(y.dtype))
            if callback is not None:
                callback(j, outputs[j], y, E)
            row = file["outputs"][j + 1]
            y = file["state"][j + 1] * x_T
            y = y + sum(c * m for c, m in zip(row, outputs, strict=False))
        return y

    def check(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
    ) -> None:
        """Raise ScheduleError for anything that the schedule was not made for."""
        mine = self.sigmas
        if len(sigmas) != len(mine):
            raise ScheduleError(
                f"{self.name} takes {len(mine) - 1} steps, and {len(sigmas) - 1} were asked for; "
                "connect the SIGMAS of the same node"
            )
        if not torch.allclose(sigmas.detach().cpu().float(), mine, rtol=1e-4, atol=1e-6):
            raise ScheduleError(
                f"these sigmas are not those of {self.name}; connect the SIGMAS of the same node"
            )
        if denoise_mask is not None:
            raise ScheduleError(f"{self.name} cannot inpaint: remove the mask of the latent")
        if latent_image is not None and bool(torch.count_nonzero(latent_image)):
            raise ScheduleError(
                f"{self.name} begins at noise, and this latent is an image; use an empty latent"
            )
        if not bool(torch.count_nonzero(noise)):
            raise ScheduleError(f"{self.name} begins at noise, and there is none: add_noise is off")
        self._check_model(model_wrap.inner_model.model_sampling)
        self._check_guidance(model_wrap)

    def _check_model(self, sampling: Any) -> None:
        wanted, noise = self.schedule.get("prediction"), self.schedule["noise"]["name"]
        classes = [known.__name__ for known in type(sampling).__mro__]
        kind = next((KINDS[name] for name in classes if name in KINDS), None)
        made = f"{self.name} was made for {self.schedule['model']}, a model of {noise} noise"
        if kind is None:
            raise ScheduleError(f"{made}; this model's sampling ({classes[0]}) is another")
        predicts = (wanted or "").removeprefix("-")
        if (predicts and kind != predicts) or (kind == "velocity") != (noise == "flow"):
            raise ScheduleError(
                f"{made} that predicts {predicts or 'x_0'}; this one predicts {kind}"
            )
        table = self.schedule["comfyui"]["table"]
        if table is not None:
            here = getattr(sampling, "sigmas", torch.empty(0)).detach().cpu().double()
            there = torch.tensor(table, dtype=torch.float64)
            if len(here) != len(there) or not torch.allclose(here, there, rtol=SAME_SIGMA):
                raise ScheduleError(f"{made}; this model has other noise levels")
        highest = float(getattr(sampling, "sigma_max", math.inf))
        if max(self.schedule["comfyui"]["sigmas"]) > highest * (1 + SAME_SIGMA):
            raise ScheduleError(f"{made}; this model's noise ends at {highest:g}, below its start")

    def _check_guidance(self, guider: Any) -> None:
        wanted, here = self.schedule.get("guidance"), getattr(guider, "cfg", None)
        wanted = 1.0 if wanted is None else float(wanted)
        if here is None or math.isclose(here, wanted, rel_tol=1e-6):
            return
        told = [c.get("guidance") for c in getattr(guider, "conds", {}).get("positive", [])]
        if here == 1 and told and all(g == wanted for g in told):
            return  # a distilled model takes its guidance with the prompt
        raise ScheduleError(
            f"{self.name} was made for cfg {wanted:g}, and cfg is {here:g}; set it to {wanted:g}"
        )


@contextmanager
def _at_step(sampling: Any, step: float | None) -> Iterator[None]:
    """Within this block the network is asked at `step`, a fraction that ComfyUI would round."""
    if step is None:
        yield
        return
    before = sampling.__dict__.get("timestep")
    sampling.__dict__["timestep"] = lambda sigma: torch.full_like(sigma, step)
    try:
        yield
    finally:
        del sampling.__dict__["timestep"]
        if before is not None:
            sampling.__dict__["timestep"] = before


class LD3Schedule:
    """The node: it loads a schedule of its folder and gives SAMPLER and SIGMAS."""

    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "load"
    CATEGORY = "sampling/custom_sampling"
    DESCRIPTION = "A learned schedule: connect both outputs to SamplerCustom."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """One input: the name of a schedule."""
        return {"required": {"schedule": (schedule_names(),)}}

    def load(self, schedule: str) -> tuple[LD3Sampler, torch.Tensor]:
        """SAMPLER and SIGMAS of a schedule."""
        sampler = LD3Sampler(schedule, load_schedule(schedule))
        return sampler, sampler.sigmas


NODE_CLASS_MAPPINGS = {"LD3Schedule": LD3Schedule}
NODE_DISPLAY_NAME_MAPPINGS = {"LD3Schedule": "Learned schedule (LD3)"}
