"""A schedule file in an unmodified diffusers pipeline.

    y_{i+1} = state_{i+1} x_T + sum_{j<=i} outputs_{i+1,j} m_j,      m_i = a_i y_i + b_i out_i

The scheduler keeps x_T and the data predictions m_j and runs the table of coefficients. Decoupled
network times and learned coefficients are therefore kept, whatever the solver. out_i is the
network's output at its own time evals_i, which the pipeline gets as a fractional entry of
`timesteps`. The numbers a_i and b_i turn it into data:

    epsilon            x_0 = (x - sigma out) / alpha
    sample             x_0 = out
    v_prediction       x_0 = alpha x - sigma out
    flow_prediction    x_0 = (sigma' x - sigma out) / w,    w = sigma' alpha - sigma alpha'
    reversed flow      as flow, with -out (InstaFlow; invert_sigmas)

One entry of `timesteps` is one network evaluation: call the pipeline with num_inference_steps =
NFE. With the file of a curve, that may be any number.

**It has the configuration of the scheduler it replaces**, and three keys more: `schedule`,
`base_class` and `force`. `Other.from_config(pipe.scheduler.config)` therefore gives the same
scheduler as before, also after saving and loading. `DDIMPipeline` replaces the scheduler that it is
loaded with by DDIM: assign `pipe.scheduler` after loading such a pipeline.

Some things are refused. All of them become warnings with `force=True`, except the last line:

    from_schedule        noise schedule and prediction of the pipeline, against the file
    set_timesteps        num_inference_steps; foreign sigmas; the guidance of the pipeline call in
                         progress, its guidance_rescale, pag_scale and the like
    step                 guidance changed on the way by a callback; latents changed between steps;
                         eta > 0
    check                noise schedule, guidance and number of steps, ahead of any call
    always               skipped or repeated times, a start between noise and data (image to image,
                         inpainting): a table starts at x_T

Only a pipeline's `__call__` knows the guidance. `set_timesteps` and `step` read it there, from the
call that they serve. If no pipeline is calling (a loop of your own, modular pipelines), use
`check`. Changes of the network itself or of its condition cannot be seen: negative prompts,
adapters, hooks, guiders of modular pipelines. Use the ones that the schedule was learned with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..models.diffusers.guidance import guidance_of_call
from ..models.diffusers.network_outputs import (
    data_coefficients,
    difference,
    network_times,
    without_variance,
)
from ..models.diffusers.scheduler_options import BASE, LEARNED, OURS, base_scheduler, underlying
from ..schedule.export import LEVEL_MATTERS
from ..schedule.file import Schedule, load_schedule, parse_schedule
from .base_scheduler import demand, made_for, named, read_process, scheduler_of

try:
    import diffusers
    from diffusers.configuration_utils import ConfigMixin, FrozenDict
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
except ImportError as error:
    raise ImportError(
        "LD3Scheduler needs the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
    ) from error


class LD3Scheduler(SchedulerMixin, ConfigMixin):
    """A scheduler that runs a schedule file in a pipeline; make one with `from_schedule`.

    Args:
        schedule: the body of a schedule file.
        base: the scheduler that it replaces, which knows the network's prediction and times. If
            not given, one is made from the schedule's own noise schedule.
        force: warn instead of refusing.

    Raises InputError for a schedule or a base that cannot be used.
    """

    _compatibles: list[str] = []  # noqa: RUF012
    order = 1

    def __init__(self, schedule: dict[str, Any], base: Any = None, force: bool = False) -> None:
        self._given = self.schedule = parse_schedule(json.dumps(schedule))
        self._force = force
        given = made_for(self.schedule, {}) if base is None else scheduler_of(base)
        base, _ = underlying(given, "LD3Scheduler")
        self._base = base
        self._register(base, schedule)
        self._process = read_process(base, self.schedule, force)
        self.prediction = self._process.prediction
        """The network's prediction, as in `core.denoiser`, or "-velocity"."""
        self._use(self.schedule)
        if hasattr(base, "alphas_cumprod"):
            self.alphas_cumprod = base.alphas_cumprod  # some pipelines look at it
        self._begin_index: int | None = None
        self._level_read = False
        self._restart(None)

    def _use(self, schedule: Schedule) -> None:
        """Run this schedule from now on: the one that was given, or its curve at another NFE."""
        self.schedule, process = schedule, self._process
        noise = schedule.noise_schedule
        evals = torch.tensor(schedule.evals, dtype=torch.float64)
        self._to_data = data_coefficients(process.prediction, noise, evals)
        fits = difference(noise, process.noise, "") is None
        self._network_times = (
            process.network_time(evals).tolist()
            if fits
            else network_times(noise, evals, process.steps)
        )

    @property
    def init_noise_sigma(self) -> float:
        """The level of the noise that a sample begins from; a pipeline scales unit noise by it."""
        self._level_read = True
        return self.schedule.prior_scale

    def _register(self, base: Any, schedule: dict[str, Any]) -> None:
        """Take over the configuration of the base, and add our three keys.

        They are listed among the keys that have their defaults: `from_config` of another class then
        leaves them out.
        """
        name = next(k.__name__ for k in type(base).__mro__ if hasattr(diffusers, k.__name__))
        told = dict(base.config)
        told["_use_default_values"] = [*told.get("_use_default_values", []), *sorted(OURS)]
        told |= {LEARNED: schedule, BASE: name, "force": self._force}
        self._internal_dict = FrozenDict(told)

    def to_json_string(self) -> str:
        """The text of scheduler_config.json; the configuration itself does not change."""
        told = dict(self._internal_dict)
        text = super().to_json_string()
        self._internal_dict = FrozenDict(told)
        return text

    @property
    def compatibles(self) -> list[Any]:
        """The classes that the replaced scheduler can be switched to."""
        return self._base.compatibles

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The scheduler of a configuration that an LD3Scheduler has or has saved.

        Raises InputError for a configuration without a schedule.
        """
        told = {**config, **{key: value for key, value in kwargs.items() if key in config}}
        if not isinstance(told.get(LEARNED), dict):
            raise InputError(
                "this configuration holds no learned schedule; make the scheduler with "
                "LD3Scheduler.from_schedule(FILE, pipeline)"
            )
        base = (
            base_scheduler(told, "LD3Scheduler")
            if BASE in told
            else made_for(parse_schedule(json.dumps(told[LEARNED])), told)
        )
        made = cls(told[LEARNED], base, bool(told.get("force", False)))
        return (made, {}) if return_unused_kwargs else made

    @classmethod
    def from_schedule(
        cls, schedule: str | os.PathLike[str] | Schedule, pipeline: Any, *, force: bool = False
    ) -> LD3Scheduler:
        """The scheduler of a schedule file (path, URL or Schedule) for a pipeline or its scheduler.

        Raises InputError, naming the difference, if the pipeline's noise schedule or prediction is
        not the file's.
        """
        if not isinstance(schedule, Schedule):
            where = os.fspath(schedule)
            try:
                return cls.from_schedule(load_schedule(schedule), pipeline, force=force)
            except InputError as error:
                text = str(error)
                raise InputError(text if where in text else f"{where}: {text}") from error
        return cls(json.loads(schedule.to_json()), scheduler_of(pipeline), force)

    def check(
        self,
        pipeline: Any,
        *,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
    ) -> None:
        """Check that this scheduler would run in a pipeline that is called like this.

        An argument that is not given is not checked.

        Args:
            pipeline: a pipeline that has this scheduler, or the one it is to replace.
            guidance_scale: of the call; for FLUX-type networks without guidance embedding, its
                true_cfg_scale.

        Raises InputError naming what does not fit and what to call it with.
        """
        scheduler = scheduler_of(pipeline)
        if scheduler is not self:
            found = read_process(scheduler, self.schedule, self._force).prediction
            self._demand(
                found == self.prediction,
                f"this scheduler takes {named(self.prediction)}, the pipeline's network gives "
                f"{named(found)}",
            )
        if guidance_scale is not None:
            self._check_guidance("guidance_scale", guidance_scale)
        if num_inference_steps is not None:
            self._check_steps(num_inference_steps)

    # --- what pipelines call ----------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Get ready for a sample: `timesteps` [NFE] float32 network times.

        Args:
            num_inference_steps: must be the schedule's NFE; any number for the file of a curve.
            sigmas: only the even ramp 1 - i / n that flow pipelines pass unasked; the schedule
                brings its own.
            mu: ignored: whatever shift there was is in the schedule's knots.
        """
        if sigmas is not None:
            n = len(sigmas)
            even = all(abs(float(sigma) - (1 - i / n)) < 1e-5 for i, sigma in enumerate(sigmas))
            self._demand(
                even, "custom sigmas: the schedule brings its own; call the pipeline without sigmas"
            )
            num_inference_steps = n
        if num_inference_steps is not None:
            self._check_steps(num_inference_steps)
            if self._given.curve is not None:
                self._use(self._given.at(num_inference_steps))
        self._check_call(under_way=False)
        self._restart(device)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample itself: these networks take x as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next state y_{i+1}, from y_i and the network's output there.

        It is computed in float32 at least, whatever the pipeline's dtype.

        Args:
            model_output: [B, C, ...]; a variance predicted as well (2 C channels) is cut off.
            timestep: the entry of `timesteps` in turn.
            sample: y_i as returned before [B, C, ...]; the first one is x_T.
            eta, use_clipped_model_output, generator: part of the DDIM signature; eta must be 0, the
                others have no use.
        """
        i = self._step_index or 0
        self._check_turn(i, float(timestep), sample, eta)
        self._check_call(under_way=True)
        wide = torch.promote_types(sample.dtype, torch.float32)
        if i == 0:
            self._check_level()
            self._states = [sample.to(wide)]
        x_T, y = self._states[0], self._states[-1]
        out = without_variance(model_output, y).to(wide)
        a, b = self._to_data[i]
        self._history.append(a * y + b * out)
        y = self.schedule.state[i + 1] * x_T
        for coefficient, m in zip(self.schedule.outputs[i + 1], self._history, strict=False):
            y = y + coefficient * m
        self._states = [x_T, y]
        self._step_index = i + 1
        if i + 1 == self.schedule.nfe:  # nothing of a finished sample stays on the device
            self._states, self._history, self._level_read = [], [], False
        y = y.to(sample.dtype)
        return SchedulerOutput(prev_sample=y) if return_dict else (y,)

    @property
    def step_index(self) -> int | None:
        """Steps taken since the last start; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """0 or None: a table starts at x_T."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Accept 0. Raises InputError for any other start."""
        if begin_index != 0:
            raise InputError(f"begin_index = {begin_index}: {_FROM_NOISE}")
        self._begin_index = begin_index

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Raise InputError: a caller wants to start between noise and data."""
        raise InputError(_FROM_NOISE)

    scale_noise = add_noise

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    # --- refusals ---------------------------------------------------------------------------------

    def _restart(self, device: str | torch.device | None) -> None:
        self.num_inference_steps = self.schedule.nfe
        self.timesteps = torch.tensor(self._network_times, dtype=torch.float32, device=device)
        self._step_index: int | None = None
        self._states: list[Tensor] = []
        self._history: list[Tensor] = []

    def _demand(self, good: bool, complaint: str) -> None:
        demand(good, self.schedule, complaint, self._force)

    def _check_steps(self, steps: int) -> None:
        if self._given.curve is not None:
            self._given.at(steps)  # raises InputError for a number that its solver cannot spend
            return
        nfe = self.schedule.nfe
        self._demand(
            steps == nfe,
            f"num_inference_steps = {steps}, but it takes {nfe}; call with "
            f"num_inference_steps={nfe}",
        )

    def _check_call(self, under_way: bool) -> None:
        """Check the guidance of the pipeline call in progress, if there is one."""
        try:
            scales = guidance_of_call(self, under_way)
        except InputError as error:
            self._demand(False, str(error))
            return
        for name, value in scales.items():
            self._check_guidance(name, value)

    def _check_guidance(self, name: str, value: float) -> None:
        asked = 1.0 if self.schedule.guidance is None else self.schedule.guidance
        good = abs(value - asked) <= 1e-6 * max(1.0, asked) or max(value, asked) <= 1.0
        self._demand(
            good,
            f"{name} = {value:g}, but it was learned with {asked:g}; call with {name}={asked:g}",
        )

    def _check_level(self) -> None:
        """Check the level of the first noise, which flow pipelines and some others leave at 1."""
        level = self.schedule.prior_scale
        self._demand(
            self._level_read or abs(level - 1) < LEVEL_MATTERS,
            f"it begins from noise of level {level:.3g}, but this pipeline does not read "
            "init_noise_sigma and begins from 1; learn from starts at t_max (--start log_snr)",
        )

    def _check_turn(self, i: int, time: float, sample: Tensor, eta: float) -> None:
        if i >= self.schedule.nfe:
            raise InputError(
                f"step {i + 1} of a schedule of {self.schedule.nfe}: call set_timesteps to start "
                f"again"
            )
        due = self._network_times[i]
        if abs(time - due) > 1e-3:
            raise InputError(
                f"step at timestep {time:g}, but the next one of the schedule is {due:g}. "
                f"{_FROM_NOISE}"
            )
        self._demand(not eta, f"eta = {eta}: a schedule is deterministic; call with eta=0")
        if i and not self._force:
            last = self._states[-1].to(sample.dtype)
            same = last.shape == sample.shape and bool(((sample == last) | (last != last)).all())
            self._demand(
                same,
                f"the sample was changed after step {i} (by a callback?), which a table cannot "
                f"follow",
            )


_FROM_NOISE = (
    "A table of coefficients starts from pure noise and takes every step in order; "
    "image to image, inpainting and split denoising need another scheduler"
)
