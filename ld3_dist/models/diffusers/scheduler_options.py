"""The scheduler classes of diffusers and the role of each of their options.

Some options describe the network, others only the steps of a sampler.

Every class belongs to one of three families:

    TABLE      alphas_cumprod [n] from betas; with `use_flow_sigmas` the straight path instead
    FLOW       the straight path of flow matching
    REFUSED    any other process, with the reason

Every option of a TABLE or FLOW class has one of four roles:

    PROCESS     it determines the noise schedule, the prediction or the network's time, and is read
    GRID        it spaces the pipeline's own steps, and is kept as a fact (`shift`)
    STEPPING    it tells the sampler to step, clip or draw noise, and has no effect on the network
    NEUTRAL     only the listed value can be honoured; any other is refused

An option that is in none of these tables is refused unless it has its default. A configuration can
also hold an option that its class does not have, left over from another class. Such an option is
refused if it would change the process: the class ignores it, and nothing tells which of the two
classes the network was trained with.

The tables were made for diffusers 0.42; `tests/models/test_scheduler_options.py` compares them with
the installed library.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ...core.errors import InputError

TABLE = frozenset(
    {
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
        "DDIMInverseScheduler",
        "DDIMParallelScheduler",
        "DDIMScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "RePaintScheduler",
        "SASolverScheduler",
        "UnCLIPScheduler",
        "UniPCMultistepScheduler",
    }
)
FLOW = frozenset(
    {
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "LTXEulerAncestralRFScheduler",
    }
)

_DISTILLED = "belongs to networks distilled to few steps, which have no path to learn a schedule on"
_TOKENS = "belongs to networks that predict discrete tokens"
_SIGMAS = "belongs to networks asked at noise levels sigma instead of the steps of a table"
REFUSED = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": _DISTILLED,
    "ConsistencyDecoderScheduler": _DISTILLED,
    "CosineDPMSolverMultistepScheduler": _SIGMAS,
    "DDPMWuerstchenScheduler": "has a continuous cosine schedule and no table of betas",
    "DiscreteDDIMScheduler": _TOKENS,
    "EDMDPMSolverMultistepScheduler": _SIGMAS,
    "EDMEulerScheduler": _SIGMAS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": _DISTILLED,
    "FlowMatchLCMScheduler": _DISTILLED,
    "HeliosDMDScheduler": _DISTILLED,
    "HeliosScheduler": "changes the size of its latents between stages",
    "IPNDMScheduler": "has a continuous cosine schedule and no table of betas",
    "KarrasVeScheduler": _SIGMAS,
    "LCMScheduler": _DISTILLED,
    "MiniMaxH3Scheduler": "has a process of its own that is not known here",
    "PiflowScheduler": _DISTILLED,
    "RFD4ProteinaScheduler": "has a process of its own that is not known here",
    "SCMScheduler": _DISTILLED,
    "ScoreSdeVeScheduler": _SIGMAS,
    "ScoreSdeVpScheduler": "has a continuous schedule and no table of betas",
    "TCDScheduler": _DISTILLED,
    "VQDiffusionScheduler": _TOKENS,
}

PROCESS = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
        "snr_shift_scale",
        "prediction_type",
        "use_flow_sigmas",
        "invert_sigmas",
    }
)
GRID = frozenset(
    {
        "shift",
        "flow_shift",
        "use_dynamic_shifting",
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
        "time_shift_type",
    }
)
STEPPING = frozenset(
    {
        # the places of the steps
        "timestep_spacing",
        "steps_offset",
        "set_alpha_to_one",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
        "interpolation_type",
        "final_sigmas_type",
        "lambda_min_clipped",
        "sigma_min",
        "sigma_max",
        "shift_terminal",
        "skip_prk_steps",
        "original_inference_steps",
        "timestep_scaling",
        # the solver that takes them
        "solver_order",
        "solver_type",
        "solver_p",
        "algorithm_type",
        "lower_order_final",
        "euler_at_final",
        "predict_x0",
        "disable_corrector",
        "predictor_order",
        "corrector_order",
        # clipping in the sampler
        "clip_sample",
        "clip_sample_range",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        # the noise of the sampler
        "variance_type",
        "tau_func",
        "eta",
        "s_noise",
        "noise_sampler_seed",
        "stochastic_sampling",
        # names that an option had once, and wrappers of arguments
        "kwargs",
        "tensor_format",
        "timestep_values",
        "set_alpha_to_zero",
    }
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "timestep_type": ("discrete",),
    "predict_epsilon": (True,),
}
LEFT_OVER: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False, None),
    "snr_shift_scale": (1, None),
    "use_flow_sigmas": (False, None),
    "invert_sigmas": (False, None),
}
"""Values with which an option that a class does not have changes nothing."""

LEARNED = "schedule"
"""Key of an `LD3Scheduler`'s configuration that holds the body of its schedule file."""
BASE = "base_class"
"""Key of the same configuration: the class of the scheduler that it replaces."""
OURS = frozenset({LEARNED, BASE, "force"})

REMEDY = (
    "put the configuration of a scheduler that the network was trained with into scheduler/ "
    "(DDPM, DDIM, PNDM, Euler, DPM-Solver, UniPC, or a flow-matching one)"
)


def family_of(scheduler: Any, model: str) -> str:
    """ "table" or "flow": the family of a scheduler's class, or of its nearest known ancestor.

    Raises InputError for a class that is refused or unknown, naming it, the reason and the remedy.
    """
    name = type(scheduler).__name__
    for kind in type(scheduler).__mro__:
        if kind.__name__ in TABLE:
            return "table"
        if kind.__name__ in FLOW:
            return "flow"
        if kind.__name__ in REFUSED:
            raise InputError(
                f"model {model!r}: its scheduler {name} {REFUSED[kind.__name__]}; {REMEDY}"
            )
    raise InputError(f"model {model!r}: its scheduler {name} is not known here; {REMEDY}")


def check_options(scheduler: Any, model: str) -> None:
    """Refuse the options of a TABLE or FLOW scheduler that cannot be honoured.

    Raises InputError naming the class, the option, its value and the remedy.
    """
    name, parameters = type(scheduler).__name__, inspect.signature(type(scheduler)).parameters
    for key, value in scheduler.config.items():
        if key.startswith("_") or key in OURS:
            continue
        where = f"model {model!r}: option {key}={value!r} of its scheduler {name}"
        if key in NEUTRAL and value not in NEUTRAL[key]:
            raise InputError(
                f"{where} cannot be honoured, only {key}={NEUTRAL[key][0]!r}; {REMEDY}"
            )
        if key in parameters:
            default = parameters[key].default
            if not _known(key) and value != default:
                raise InputError(
                    f"{where} is not known here, only its default {default!r}; remove it from "
                    f"scheduler/scheduler_config.json if the network does not depend on it"
                )
        elif key in PROCESS:
            _check_left_over(scheduler, key, value, where)
        elif not _known(key) and value not in (None, False):
            raise InputError(
                f"{where} is not known, not even to that class; remove it from "
                f"scheduler/scheduler_config.json if the network does not depend on it"
            )


def _check_left_over(scheduler: Any, key: str, value: Any, where: str) -> None:
    """Refuse an option of another class that would change the process in that class."""
    allowed = LEFT_OVER.get(key)
    if key == "prediction_type":
        allowed = (implied_prediction(scheduler), None)
    if key == "use_flow_sigmas" and implied_prediction(scheduler) == "flow_prediction":
        allowed = (True, False, None)
    if allowed is not None and value not in allowed:
        raise InputError(
            f"{where} is ignored by that class, but changes the network's process in others; put "
            f"a scheduler that has the option into scheduler/, or remove the option there"
        )


def implied_prediction(scheduler: Any) -> str:
    """The prediction_type of a class that has no such option."""
    known = any(kind.__name__ in FLOW for kind in type(scheduler).__mro__)
    return "flow_prediction" if known else "epsilon"


def _known(key: str) -> bool:
    return key in PROCESS or key in GRID or key in STEPPING or key in NEUTRAL


def underlying(scheduler: Any, model: str) -> tuple[Any, bool]:
    """The scheduler that describes the network, and True if the network's velocity is reversed.

    An `LD3Scheduler` replaces the scheduler of the network. That scheduler is made again from the
    configuration of the `LD3Scheduler`. Any other scheduler is returned as it is.

    Raises InputError if the configuration names no scheduler class of diffusers.
    """
    config: Mapping[str, Any] = scheduler.config
    if LEARNED not in config or BASE not in config:
        return scheduler, False
    base = base_scheduler(config, model)
    body = config[LEARNED]
    predicts = body.get("prediction") if isinstance(body, Mapping) else None
    flow = isinstance(body, Mapping) and dict(body.get("noise") or {}).get("name") == "flow"
    is_table = not any(kind.__name__ in FLOW for kind in type(base).__mro__)
    rectified = flow and is_table and not base.config.get("use_flow_sigmas")
    return base, rectified and predicts == "-velocity"


def base_scheduler(config: Mapping[str, Any], model: str) -> Any:
    """The scheduler that an `LD3Scheduler` with this configuration replaces."""
    import diffusers

    name = config[BASE]
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
        raise InputError(
            f"model {model!r}: its LD3Scheduler stands in for {name!r}, which is no scheduler of "
            f"diffusers; make it again with LD3Scheduler.from_schedule"
        )
    told: Any = {key: value for key, value in config.items() if key not in OURS}
    try:
        return kind.from_config(told)  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(
            f"model {model!r}: its LD3Scheduler stands in for {name}, which cannot be made from "
            f"its options: {error}"
        ) from error
