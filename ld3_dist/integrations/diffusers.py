"""A schedule file in an unmodified diffusers pipeline.

    y_{i+1} = state_{i+1} x_T + sum_{j<=i} outputs_{i+1,j} m_j,      m_i = a_i y_i + b_i out_i

The scheduler keeps x_T and the data predictions m_j and runs the table of coefficients, so
decoupled network times and learned coefficients are kept, whatever the solver. out_i is what the
network predicts at its own time evals_i, which the pipeline gets as a fractional entry of
`timesteps`; a_i, b_i turn it into data:

    epsilon            x_0 = (x - sigma out) / alpha                  sample     x_0 = out
    v_prediction       x_0 = alpha x - sigma out                      flow       x_0 = (sigma' x -
                       sigma out) / w, w = sigma' alpha - sigma alpha'
    reversed flow      as flow, with -out (InstaFlow)

One entry of `timesteps` is one network evaluation: call the pipeline with num_inference_steps =
NFE.

What is refused (all of it becomes a warning with `force=True`), and where it is seen:

    from_schedule        noise schedule and prediction of the pipeline, against the file
    set_timesteps        num_inference_steps; foreign sigmas; the guidance of the pipeline call in
                         progress
    step                 skipped or repeated times, latents changed between steps, eta > 0
    check                noise schedule, guidance and number of steps, ahead of any call

Guidance is known only to a pipeline's `__call__`. `set_timesteps` reads it there, from the call
that it serves; where no pipeline is calling (a loop of your own, modular pipelines) use `check`.
Starting between noise and data (image to image, inpainting) is impossible for a table that starts
at x_T, and is refused always.

`DDIMPipeline` replaces the scheduler that it is loaded with by DDIM: assign `pipe.scheduler` after
loading it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.noise import VPDiscrete
from ..models.diffusers.network_outputs import (
    data_coefficients,
    difference,
    guidance_of_call,
    network_times,
)
from ..models.diffusers.parametrisation import PREDICTIONS, read_parametrisation
from ..schedule.file import Schedule, load_schedule, parse_schedule

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
except ImportError as error:
    raise ImportError(
        "LD3Scheduler needs the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
    ) from error


class LD3Scheduler(SchedulerMixin, ConfigMixin):
    """Runs a schedule file in a pipeline; make one with `from_schedule`.

    Args:
        schedule: the body of a schedule file.
        prediction_type: what the network predicts, one of epsilon, v_prediction, sample and
            [reversed_]flow_prediction.
        num_train_timesteps: the network's time is this number times t for a flow model; the length
            of the table otherwise.
        force: warn where it would refuse.
        shift, use_dynamic_shifting, base_shift, max_shift, base_image_seq_len, max_image_seq_len:
            of the flow pipeline it was made for. They change nothing here, and are kept so that the
            pipeline can be opened as a model again.

    Raises InputError for a schedule or prediction that cannot be used.
    """

    _compatibles: list[str] = []  # noqa: RUF012
    order = 1

    @register_to_config
    def __init__(
        self,
        schedule: dict[str, Any],
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        force: bool = False,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
    ) -> None:
        self.schedule = parse_schedule(json.dumps(schedule))
        if prediction_type not in PREDICTIONS:
            raise InputError(
                f"prediction_type {prediction_type!r}: one of {', '.join(PREDICTIONS)}"
            )
        noise = self.schedule.noise_schedule
        if isinstance(noise, VPDiscrete):
            # as other schedulers have it, so that a pipeline saved with this one can be opened as a
            # model again
            self.alphas_cumprod = noise.alphas_cumprod.float()
        self.init_noise_sigma = self.schedule.prior_scale
        self._force = force
        evals = torch.tensor(self.schedule.evals, dtype=torch.float64)
        self._to_data = data_coefficients(PREDICTIONS[prediction_type], noise, evals)
        self._network_times = network_times(noise, evals, num_train_timesteps)
        self._begin_index: int | None = None
        self._restart(None)

    @classmethod
    def from_schedule(
        cls, schedule: str | os.PathLike[str] | Schedule, pipeline: Any, *, force: bool = False
    ) -> LD3Scheduler:
        """The scheduler of a schedule file (path, URL or Schedule) for a pipeline, or for the
        pipeline's scheduler.

        Raises InputError naming what differs if the pipeline's noise schedule or prediction is not
        the file's."""
        if not isinstance(schedule, Schedule):
            where = os.fspath(schedule)
            try:
                return cls.from_schedule(load_schedule(schedule), pipeline, force=force)
            except InputError as error:
                text = str(error)
                raise InputError(text if where in text else f"{where}: {text}") from error
        scheduler = getattr(pipeline, "scheduler", pipeline)
        prediction, steps = _read(scheduler, schedule, force)
        shifting = {
            key: scheduler.config[key] for key in _SHIFTING if scheduler.config.get(key) is not None
        }
        # by name: diffusers takes what is given by position for a default that another class may
        # replace
        named = {"prediction_type": prediction, "num_train_timesteps": steps, "force": force}
        return cls(schedule=json.loads(schedule.to_json()), **named, **shifting)

    def check(
        self,
        pipeline: Any,
        *,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
    ) -> None:
        """Would this scheduler run in a pipeline called like this? What is not given is not
        checked.

        Args:
            pipeline: a pipeline that has this scheduler, or the one it is to replace.
            guidance_scale: of the call; for FLUX-type networks without guidance embedding, its
                true_cfg_scale.

        Raises InputError naming what does not fit and what to call it with.
        """
        scheduler = getattr(pipeline, "scheduler", pipeline)
        if scheduler is not self:
            prediction, _ = _read(scheduler, self.schedule, self._force)
            mine = self.config["prediction_type"]
            self._demand(
                prediction == mine,
                f"this scheduler takes {mine}, the pipeline's network gives {prediction}",
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
            num_inference_steps: must be the schedule's NFE.
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
        for name, value in guidance_of_call(self).items():
            self._check_guidance(name, value)
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
        """From y_i and the network's output there to y_{i+1}, in at least float32 whatever the
        pipeline's dtype.

        Args:
            model_output: [B, C, ...]; a variance predicted as well (2 C channels) is cut off.
            timestep: the entry of `timesteps` in turn.
            sample: y_i as returned before [B, C, ...]; the first one is x_T.
            eta, use_clipped_model_output, generator: part of the DDIM signature; eta must be 0, the
                others have no use.
        """
        i = self._step_index or 0
        self._check_turn(i, float(timestep), sample, eta)
        wide = torch.promote_types(sample.dtype, torch.float32)
        if i == 0:
            self._states = [sample.to(wide)]
        x_T, y = self._states[0], self._states[-1]
        out = model_output.to(wide)
        if out.ndim > 1 and out.shape[1] == 2 * y.shape[1]:
            out = out[:, : y.shape[1]]
        a, b = self._to_data[i]
        self._history.append(a * y + b * out)
        y = self.schedule.state[i + 1] * x_T
        for coefficient, m in zip(self.schedule.outputs[i + 1], self._history, strict=False):
            y = y + coefficient * m
        self._states = [x_T, y]
        self._step_index = i + 1
        if i + 1 == self.schedule.nfe:  # nothing of a finished sample stays on the device
            self._states, self._history = [], []
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
        """Accepts 0. Raises InputError for any other start."""
        if begin_index != 0:
            raise InputError(f"begin_index = {begin_index}: {_FROM_NOISE}")
        self._begin_index = begin_index

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Raises InputError: what it would be asked for is a start between noise and data."""
        raise InputError(_FROM_NOISE)

    scale_noise = add_noise

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    # --- refusals ---------------------------------------------------------------------------------

    def _restart(self, device: str | torch.device | None) -> None:
        self.num_inference_steps = self.schedule.nfe
        self.timesteps = torch.tensor(self._network_times, dtype=torch.float32, device=device)
        self._step_index: int | None = None
        self._states: list[Tensor] = []
        self._history: list[Tensor] = []

    def _demand(self, good: bool, complaint: str) -> None:
        _demand(good, self.schedule, complaint, self._force)

    def _check_steps(self, steps: int) -> None:
        nfe = self.schedule.nfe
        self._demand(
            steps == nfe,
            f"num_inference_steps = {steps}, but it takes {nfe}; call with "
            f"num_inference_steps={nfe}",
        )

    def _check_guidance(self, name: str, value: float) -> None:
        asked = 1.0 if self.schedule.guidance is None else self.schedule.guidance
        good = abs(value - asked) <= 1e-6 * max(1.0, asked) or max(value, asked) <= 1.0
        self._demand(
            good,
            f"{name} = {value:g}, but it was learned with {asked:g}; call with {name}={asked:g}",
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


_SHIFTING = (
    "shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
)

_FROM_NOISE = (
    "A table of coefficients starts from pure noise and takes every step in order; "
    "image to image, inpainting and split denoising need another scheduler"
)


def _read(scheduler: Any, schedule: Schedule, force: bool) -> tuple[str, int]:
    """prediction_type and number of network steps of a pipeline, once its noise schedule is seen to
    be the file's.
    """
    name = type(scheduler).__name__
    if not isinstance(getattr(scheduler, "config", None), Mapping):
        raise InputError(f"{name} is neither a diffusers pipeline with a scheduler nor a scheduler")
    # the scheduler of an InstaFlow pipeline is that of Stable Diffusion and does not say what the
    # network is
    process = read_parametrisation(
        scheduler, name, tokens=0, shift=None, rectified=schedule.prediction == "-velocity"
    )
    differs = difference(schedule.noise_schedule, process.noise, name)
    _demand(differs is None, schedule, f"{differs}; use it with {schedule.model}", force)
    told, found = schedule.prediction, process.prediction
    _demand(
        told in (None, found),
        schedule,
        f"its network predicts {told}, the pipeline's {found}",
        force,
    )
    kinds = {kind: named for named, kind in PREDICTIONS.items()}
    return kinds[process.prediction], process.steps


def _demand(good: bool, schedule: Schedule, complaint: str, force: bool) -> None:
    text = (
        f"schedule of {schedule.model} ({schedule.solver}, {schedule.nfe} evaluations): {complaint}"
    )
    if not good and not force:
        raise InputError(f"{text}, or run it all the same with force=True")
    if not good:
        warnings.warn(text, stacklevel=4)
