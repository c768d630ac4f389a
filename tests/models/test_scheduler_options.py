"""Every scheduler class of the installed diffusers and every option of each: what we read of it is
what the library's own scheduler says, whatever else is set.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny_pipelines as tiny
import torch
from slowly import few

from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import FLOOR, FlowMatching, VPDiscrete
from ld3_dist.models import open_model
from ld3_dist.models.diffusers.parametrisation import Parametrisation, read_parametrisation
from ld3_dist.models.diffusers.scheduler_options import (
    FLOW,
    GRID,
    NEUTRAL,
    PROCESS,
    REFUSED,
    STEPPING,
    TABLE,
    check_options,
)

diffusers = pytest.importorskip("diffusers")


def scheduler_classes() -> dict[str, Any]:
    """All of them, also those behind a package that is not installed, which is faked."""
    if "torchsde" not in sys.modules:
        sys.modules["torchsde"] = types.ModuleType("torchsde")
    import diffusers.schedulers as room

    found: dict[str, Any] = {}
    for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        module = importlib.import_module(info.name)
        for name, kind in vars(module).items():
            if (
                inspect.isclass(kind)
                and issubclass(kind, diffusers.ConfigMixin)
                and kind.__module__ == module.__name__
                and name.endswith("Scheduler")
            ):
                found[name] = kind
    return found


CLASSES = scheduler_classes()
OPTIONS = {
    name: list(inspect.signature(kind).parameters.values()) for name, kind in CLASSES.items()
}


def read(scheduler: Any, **more: Any) -> Parametrisation:
    return read_parametrisation(scheduler, "m", tokens=more.pop("tokens", 1024), shift=None, **more)


def own_table(scheduler: Any) -> torch.Tensor:
    """alphas_cumprod as the library has it, but for the 2^-24 that stands for 0."""
    table = scheduler.alphas_cumprod.double().clone()
    if getattr(scheduler.config, "rescale_betas_zero_snr", False):
        assert float(table[-1]) in (0.0, 2.0**-24)
        table[-1] = 0.0
    return table.clamp(FLOOR**2, 1 - FLOOR)


def test_every_class_is_in_one_family() -> None:
    assert len(CLASSES) >= 50
    assert {"DDIMScheduler", "CogVideoXDDIMScheduler", "DPMSolverSDEScheduler"} <= set(CLASSES)
    for name in CLASSES:
        assert (name in TABLE) + (name in FLOW) + (name in REFUSED) == 1, name
    assert TABLE | FLOW | set(REFUSED) == set(CLASSES)


def test_every_option_has_one_role() -> None:
    for name in TABLE | FLOW:
        for parameter in OPTIONS[name]:
            roles = [parameter.name in role for role in (PROCESS, GRID, STEPPING, NEUTRAL)]
            assert sum(roles) == 1, f"{name}.{parameter.name}"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_classes_are_named(name: str) -> None:
    made = object.__new__(CLASSES[name])
    made._internal_dict = diffusers.configuration_utils.FrozenDict({})
    with pytest.raises(InputError, match=rf"'m'.*its scheduler {name} .*; put .* into scheduler/"):
        read(made)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_defaults_are_read_as_the_library_has_them(name: str) -> None:
    made = CLASSES[name]()
    found = read(made)
    assert isinstance(found.noise, VPDiscrete)
    torch.testing.assert_close(found.noise.alphas_cumprod, own_table(made), rtol=0, atol=0)
    assert (found.prediction, found.steps, found.shift) == ("noise", 1000, None)
    t = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found.network_time(t), torch.tensor([0.0, 499, 999]).double())


# what is tried of each option, beside its default
VALUES: dict[str, list[Any]] = {
    "num_train_timesteps": [500],
    "beta_start": [0.0005],
    "beta_end": [0.015],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid", "exp"],
    "trained_betas": [numpy.linspace(0.001, 0.02, 1000)],
    "rescale_betas_zero_snr": [True],
    "snr_shift_scale": [1.0, 2.5],
    "prediction_type": ["v_prediction", "sample"],
    "clip_sample": [True, False],
    "thresholding": [True],
    "set_alpha_to_one": [True, False],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "use_lu_lambdas": [True],
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "steps_offset": [1],
    "final_sigmas_type": ["sigma_min"],
    "variance_type": ["learned_range", "learned"],
    "interpolation_type": ["log_linear"],
    "solver_order": [1, 3],
    "algorithm_type": ["sde-dpmsolver++"],
    "lower_order_final": [True, False],
    "sigma_min": [0.1],
    "sigma_max": [10.0],
    "lambda_min_clipped": [-5.1],
    "predict_x0": [False],
    "flow_shift": [3.0],
    "time_shift_type": ["exponential"],
}


def attempts() -> list[tuple[str, str, Any]]:
    """(class, option, value) for every option of every TABLE class that can be set alone."""
    return [
        (name, parameter.name, value)
        for name in sorted(TABLE)
        for parameter in OPTIONS[name]
        for value in VALUES.get(parameter.name, [])
    ]


def test_every_option_is_tried_or_known_to_need_others() -> None:
    tried = {option for _, option, _ in attempts()}
    left = {p.name for name in TABLE for p in OPTIONS[name]} - tried
    assert left == {
        # of effect with another option only, or an object
        "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "euler_at_final",
        "kwargs", "solver_type", "solver_p", "disable_corrector", "skip_prk_steps", "eta",
        "tau_func", "predictor_order", "corrector_order", "noise_sampler_seed", "shift_terminal",
        # below
        "use_flow_sigmas", "use_dynamic_shifting", "timestep_type",
    }  # fmt: skip


ATTEMPTS = list(attempts())


@pytest.mark.parametrize(("name", "option", "value"), few(ATTEMPTS, ATTEMPTS[::3]))
@pytest.mark.siblings(6)
def test_each_option_gives_the_librarys_own_table(name: str, option: str, value: Any) -> None:
    try:
        made = CLASSES[name](**{option: value})
    except (NotImplementedError, ValueError):  # a value that this class does not have
        if option not in ("beta_schedule", "algorithm_type"):
            raise
        return
    found = read(made)
    assert isinstance(found.noise, VPDiscrete)
    torch.testing.assert_close(found.noise.alphas_cumprod, own_table(made), rtol=0, atol=0)
    if option not in PROCESS:
        plain = CLASSES[name]()
        assert torch.equal(found.noise.alphas_cumprod, read(plain).noise.alphas_cumprod)  # type: ignore[attr-defined]
    predictions = {"v_prediction": "v", "sample": "data"}
    assert found.prediction == predictions.get(
        value if option == "prediction_type" else "", "noise"
    )
    assert found.steps == len(made.alphas_cumprod)
    empty = option == "rescale_betas_zero_snr"
    assert found.noise.t_max == (1 - 1 / found.steps if empty else 1.0)


def test_cogvideox() -> None:
    """Zero terminal SNR and SNR shift, against the formulas in float64."""
    for kind in (diffusers.CogVideoXDDIMScheduler, diffusers.CogVideoXDPMScheduler):
        made = kind(
            rescale_betas_zero_snr=True, snr_shift_scale=3.0, prediction_type="v_prediction"
        )
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        a2 = (1 - betas).cumprod(0)
        a2 = a2 / (3 + (1 - 3) * a2)  # the SNR divided by 3
        root = a2.sqrt()
        a2 = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        found = read(made)
        assert isinstance(found.noise, VPDiscrete)
        torch.testing.assert_close(found.noise.alphas_cumprod, a2, rtol=0, atol=1e-6)
        assert (found.prediction, found.noise.t_max) == ("v", 1.0)


FLOWING = [name for name in sorted(TABLE) if "use_flow_sigmas" in [p.name for p in OPTIONS[name]]]


def follows_its_path(made: Any, found: Parametrisation) -> None:
    """Every time of the library's own run is our network time at its noise level."""
    made.set_timesteps(7)
    sigmas = made.sigmas.double()
    if made.config.get("invert_sigmas"):
        sigmas = 1 - sigmas
    if type(made).__name__ == "FlowMatchHeunDiscreteScheduler":  # its sigmas are listed doubly
        sigmas = made.timesteps.double() / found.steps
    for time, sigma in zip(made.timesteps.double(), sigmas, strict=False):
        assert float(found.network_time(sigma)) == pytest.approx(float(time), abs=1.0)
        assert found.noise.sigma(sigma) == sigma
        assert found.noise.alpha(sigma) == 1 - sigma


@pytest.mark.parametrize("name", [*FLOWING, *sorted(FLOW)])
def test_flow_schedulers(name: str) -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    shifted = "flow_shift" if name in TABLE else "shift"
    has_shift = shifted in [p.name for p in OPTIONS[name]]
    told = {**(flow if name in TABLE else {}), **({shifted: 3.0} if has_shift else {})}
    made = CLASSES[name](**told)
    found = read(made)
    assert isinstance(found.noise, FlowMatching)
    assert (found.prediction, found.steps) == ("velocity", 1000)
    assert found.shift == (3.0 if has_shift else 1.0)
    if "Inverse" not in name:
        follows_its_path(made, found)


@pytest.mark.parametrize("key", ["base_shift", "max_shift", "base_image_seq_len"])
@pytest.mark.parametrize("value", [[], {"a": 1}, "x", True, float("nan")])
def test_options_of_a_dynamic_shift_are_numbers(key: str, value: Any) -> None:
    made = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    made.register_to_config(**{key: value})
    with pytest.raises(InputError, match=rf"model 'm': .*{key}"):
        read(made)


def test_inverted_sigmas_run_upwards_and_reverse_the_velocity() -> None:
    """Mochi's convention, against a step of the library's own scheduler."""
    made = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    found = read(made)
    assert found.prediction == "-velocity"
    follows_its_path(made, found)
    made.set_timesteps(5)
    assert float(made.timesteps[0]) == 0
    x_0, z = torch.randn(2, 3), torch.randn(2, 3)
    level = 1 - made.sigmas[:2].double()
    x = (1 - level[0]) * x_0 + level[0] * z
    stepped = made.step(x_0 - z, made.timesteps[0], x.float()).prev_sample
    torch.testing.assert_close(stepped, ((1 - level[1]) * x_0 + level[1] * z).float())


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift(kind: str) -> None:
    """The shift that the library's own spacing has for mu."""
    made = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind
    )
    mu = 0.5 + 0.65 * (1024 - 256) / 3840
    shift = read(made).shift
    assert shift == pytest.approx(mu if kind == "linear" else math.exp(mu))
    t = 0.4
    assert made.time_shift(mu, 1.0, t) == pytest.approx(shift * t / (1 + (shift - 1) * t))


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "prediction_type='epsilon'"),
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "use_flow_sigmas: true"),
    ("DDIMScheduler", {"prediction_type": "score"}, "'score'"),
    ("DDIMScheduler", {"prediction_type": ["epsilon"]}, "epsilon"),
    ("DDIMScheduler", {"trained_betas": [0.1, -0.2, 0.3]}, "trained_betas"),
    ("FlowMatchEulerDiscreteScheduler", {"shift": -1.0}, "shift of -1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "said"), REFUSALS)
def test_values_that_cannot_be_honoured_are_named(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as error:
        read(CLASSES[name](**options))
    assert said in str(error.value)
    assert "'m'" in str(error.value)


LEFT_OVER: list[tuple[str, dict[str, Any]]] = [
    ("PNDMScheduler", {"rescale_betas_zero_snr": True}),
    ("DDIMScheduler", {"snr_shift_scale": 3.0}),
    ("DDIMScheduler", {"use_flow_sigmas": True}),
    ("RePaintScheduler", {"prediction_type": "v_prediction"}),
    ("UnCLIPScheduler", {"trained_betas": [0.1, 0.2, 0.3]}),
    ("DDIMScheduler", {"invert_sigmas": True}),
    ("FlowMatchHeunDiscreteScheduler", {"invert_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"prediction_type": "epsilon"}),
    ("DDPMScheduler", {"predict_epsilon": False}),
    ("DDIMScheduler", {"timestep_type": "continuous"}),
    ("DDIMScheduler", {"sigma_data": 0.5}),
    ("DDIMScheduler", {"beta_shedule": "linear"}),
]


@pytest.mark.parametrize(("name", "options"), LEFT_OVER)
def test_options_that_a_class_ignores_are_refused_where_they_matter(
    name: str, options: dict[str, Any]
) -> None:
    made = CLASSES[name].from_config({**options, "_class_name": name})
    with pytest.raises(InputError, match=f"option {next(iter(options))}=.*scheduler {name}"):
        read(made)


def test_switching_classes_is_no_reason_to_refuse() -> None:
    """What a class leaves over in the configuration of another stays harmless."""
    for first in sorted(TABLE):
        for second in ("DDIMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"):
            config = CLASSES[first](**({} if first == "UnCLIPScheduler" else SD)).config
            told = {key: value for key, value in config.items() if key != "snr_shift_scale"}
            check_options(CLASSES[second].from_config(told), "m")


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def test_an_option_of_a_newer_library() -> None:
    class DDIMScheduler(diffusers.DDIMScheduler):
        @diffusers.configuration_utils.register_to_config
        def __init__(self, num_train_timesteps: int = 1000, new_shift: float = 1.0) -> None:
            super().__init__(num_train_timesteps)

    assert read(DDIMScheduler()).steps == 1000
    with pytest.raises(InputError, match=r"option new_shift=2\.0 .*only its default 1\.0"):
        read(DDIMScheduler(new_shift=2.0))

    class Unheard(diffusers.ConfigMixin):
        config_name = "x.json"

    made = Unheard()
    made.register_to_config(a=1)
    with pytest.raises(InputError, match="scheduler Unheard is not known here; put"):
        read(made)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_train_timesteps", 0),
        ("num_train_timesteps", -1),
        ("num_train_timesteps", 10**12),
        ("num_train_timesteps", "many"),
        ("num_train_timesteps", True),
        ("beta_start", "small"),
        ("beta_end", float("nan")),
        ("beta_end", 2.0),
        ("beta_schedule", 3),
        ("trained_betas", {"a": 1}),
        ("trained_betas", "0.1"),
        ("prediction_type", {"a": 1}),
        ("rescale_betas_zero_snr", []),
        ("_class_name", ["DDIMScheduler"]),
    ],
)
def test_nonsense_in_a_configuration_is_a_message(tmp_path: Path, option: str, value: Any) -> None:
    folder = tiny.pixel(tmp_path / "model")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), option: value}))
    if option in ("rescale_betas_zero_snr", "_class_name"):  # false is false; the index names it
        assert open_model(f"diffusers:{folder}").hash
        return
    with pytest.raises(InputError) as error:
        open_model(f"diffusers:{folder}")
    assert str(folder) in str(error.value)
