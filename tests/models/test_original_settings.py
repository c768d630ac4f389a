"""What a latent-diffusion YAML and its checkpoint's buffers say reaches the converted model: its
alpha^2 and D against formulas written here, in NumPy.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy
import original_checkpoints as original
import pytest
import torch
import yaml
from schedules import one_thread  # noqa: F401
from slowly import few

from ld3_dist.core.errors import InputError
from ld3_dist.core.sample import draw_noise
from ld3_dist.models import open_model
from ld3_dist.models.diffusers.latent_diffusion import convert_original
from ld3_dist.models.diffusers.original_settings import read_settings

pytest.importorskip("diffusers")
N, START, END = 1000, 0.0015, 0.0195
k = numpy.arange(N)


def cosine(s: float = 0.008, n: int = N) -> numpy.ndarray:
    f = numpy.cos((numpy.arange(n + 1) / n + s) / (1 + s) * numpy.pi / 2) ** 2
    return numpy.minimum(1 - f[1:] / f[:-1], 0.999)


def line(start: float = START, end: float = END) -> numpy.ndarray:
    return start + (end - start) * k / (N - 1)


LINEAR = line(START**0.5, END**0.5) ** 2
BETAS: dict[str, numpy.ndarray] = {
    "linear": LINEAR,
    "scaled_linear": LINEAR,
    "sqrt_linear": line(),
    "sqrt": line(1e-6, 1e-4) ** 0.5,
    "cosine": cosine(),
    "squaredcos_cap_v2": cosine(),
}


def convert(folder: Path, unet: dict[str, Any] | None = None, **more: Any) -> tuple[Any, Any, Any]:
    """(the model of the converted folder, the U-Net and the autoencoder that went into it)."""
    checkpoint, config, net, vq = original.write(folder, unet or original.UNCONDITIONAL, **more)
    return (
        open_model(f"diffusers:{convert_original(checkpoint, config, folder / 'made')}"),
        net,
        vq,
    )


def check_data(model: Any, net: Any, a2: numpy.ndarray, kind: str) -> None:
    """D at three integer steps, against the network's output and the table a2."""
    x = draw_noise(0, range(1), model.denoiser.shape)
    for step in (0, len(a2) // 2 - 1, len(a2) - 2):
        with torch.no_grad():
            out = net(x, torch.tensor([float(step)])).sample
            got = model.denoiser(x, torch.tensor([(step + 1) / len(a2)], dtype=torch.float64))
        alpha, sigma = float(a2[step]) ** 0.5, float(1 - a2[step]) ** 0.5
        expected = {
            "eps": (x - sigma * out) / alpha, "x0": out, "v": alpha * x - sigma * out
        }[kind]  # fmt: skip
        scale = expected.abs().max()
        torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=2e-3)


PAIRS = [(name, kind) for name in BETAS for kind in ("eps", "x0", "v")]


@pytest.mark.parametrize(("name", "kind"), few(PAIRS, [*PAIRS[::3], PAIRS[1]]))
@pytest.mark.siblings(3)
def test_schedules_and_parametrisations(tmp_path: Path, name: str, kind: str) -> None:
    params = {"beta_schedule": name, "parameterization": kind}
    if name == "sqrt":
        params |= {"linear_start": 1e-6, "linear_end": 1e-4}  # type: ignore[dict-item]
    model, net, _ = convert(tmp_path, params=params)
    a2 = numpy.cumprod(1 - BETAS[name])
    numpy.testing.assert_allclose(
        model.denoiser.noise.alphas_cumprod.numpy(), a2, rtol=2e-4, atol=1e-9
    )
    check_data(model, net, a2, kind)


def test_what_the_yaml_leaves_out_has_the_original_defaults(tmp_path: Path) -> None:
    params = {"linear_start": None, "linear_end": None, "timesteps": None}
    model, net, _ = convert(tmp_path, params=params)
    a2 = numpy.cumprod(1 - line(1e-4**0.5, 2e-2**0.5) ** 2)
    numpy.testing.assert_allclose(model.denoiser.noise.alphas_cumprod.numpy(), a2, rtol=2e-4)
    check_data(model, net, a2, "eps")


OTHER = numpy.cumprod(1 - line(0.001, 0.012))
TABLES: list[tuple[str, dict[str, Any], dict[str, numpy.ndarray], numpy.ndarray, bool]] = [
    ("cosine_s", {"beta_schedule": "cosine", "cosine_s": 0.02}, {}, cosine(0.02), False),
    ("given", {"given_betas": line(0.001, 0.01).tolist()}, {}, line(0.001, 0.01), False),
    ("steps", {"timesteps": 500, "beta_schedule": "cosine"}, {}, cosine(n=500), False),
    ("agree", {}, {"alphas_cumprod": numpy.cumprod(1 - LINEAR), "betas": LINEAR}, LINEAR, False),
    ("differ", {}, {"alphas_cumprod": OTHER}, line(0.001, 0.012), True),
    ("betas", {}, {"betas": line(0.001, 0.012)}, line(0.001, 0.012), True),
    ("both", {}, {"alphas_cumprod": OTHER, "betas": LINEAR}, line(0.001, 0.012), True),
    ("longer", {"timesteps": 500}, {"alphas_cumprod": OTHER}, line(0.001, 0.012), True),
]


@pytest.mark.parametrize(("params", "buffers", "betas", "told"), [t[1:] for t in TABLES],
                         ids=[t[0] for t in TABLES])  # fmt: skip
@pytest.mark.siblings(3)
def test_buffers_are_the_truth(
    tmp_path: Path, params: Any, buffers: Any, betas: Any, told: bool, caplog: Any
) -> None:
    stored = {name: torch.tensor(value, dtype=torch.float32) for name, value in buffers.items()}
    with caplog.at_level(logging.WARNING, logger="ld3_dist"):
        model, net, _ = convert(tmp_path, params=params, buffers=stored)
    assert ("alphas_cumprod" in caplog.text) == told
    a2 = numpy.cumprod(1 - betas)
    numpy.testing.assert_allclose(
        model.denoiser.noise.alphas_cumprod.numpy(), a2, rtol=2e-4, atol=1e-9
    )
    check_data(model, net, a2, "eps")


def test_zero_terminal_snr_of_the_buffers(tmp_path: Path) -> None:
    root = numpy.sqrt(numpy.cumprod(1 - LINEAR))
    a2 = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    model, net, _ = convert(
        tmp_path,
        params={"parameterization": "v"},
        buffers={"alphas_cumprod": torch.tensor(a2, dtype=torch.float32)},
    )
    assert model.denoiser.noise.starts_at_pure_noise
    check_data(model, net, a2, "v")


@pytest.mark.parametrize(
    ("params", "buffer", "scale", "told"),
    [
        ({}, None, 1.0, False),
        ({"scale_factor": 0.7}, None, 0.7, False),
        ({"scale_by_std": True}, 0.9, 0.9, False),
        ({"scale_factor": 0.7, "scale_by_std": True}, 0.9, 0.9, False),
        ({"scale_factor": 0.7}, 0.9, 0.9, True),
    ],
)
@pytest.mark.siblings(2)
def test_scale_of_the_latents(
    tmp_path: Path, params: Any, buffer: float | None, scale: float, told: bool, caplog: Any
) -> None:
    buffers = {} if buffer is None else {"scale_factor": torch.tensor(buffer)}
    with caplog.at_level(logging.WARNING, logger="ld3_dist"):
        model, _, vq = convert(tmp_path, params=params, buffers=buffers)
    assert ("scale_factor" in caplog.text) == told
    x = draw_noise(0, range(2), model.denoiser.shape)
    with torch.no_grad():
        quantised, *_ = vq.quantize(x / scale)
        expected = vq.decoder(vq.post_quant_conv(quantised))
    torch.testing.assert_close(model.denoiser.decode(x), expected)


PUBLISHED: dict[str, Any] = {
    "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
    "base_learning_rate": 1e-6,
    "params": {
        **original.settings({**original.ON_CLASSES, "dropout": 0.0, "legacy": False}),
        "log_every_t": 200, "first_stage_key": "image", "cond_stage_key": "class_label",
        "image_size": 8, "channels": 3, "cond_stage_trainable": True, "monitor": "val/loss",
        "conditioning_key": "crossattn", "use_ema": False, "num_timesteps_cond": 1,
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.ClassEmbedder",
            "params": {
                "n_classes": original.CLASSES + 1,
                "embed_dim": original.WIDTH,
                "key": "class_label",
            },
        },
        "scheduler_config": {"target": "x", "params": {}},
    },
}  # fmt: skip
PUBLISHED["params"]["unet_config"]["target"] = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
PUBLISHED["params"]["first_stage_config"]["target"] = "ldm.models.autoencoder.VQModelInterface"
PUBLISHED["params"]["first_stage_config"]["params"]["lossconfig"] = {"target": "torch.nn.Identity"}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The published YAML with one key set, or taken out where the value is ...."""
    made = copy.deepcopy(PUBLISHED)
    *parents, last = path.split(".")
    place: Any = made
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return {"model": made}


def test_a_yaml_as_they_were_published(tmp_path: Path) -> None:
    checkpoint, config, *_ = original.write(tmp_path, original.ON_CLASSES)
    config.write_text(yaml.safe_dump({"model": PUBLISHED}))
    model = open_model(f"diffusers:{convert_original(checkpoint, config, tmp_path / 'made')}")
    assert model.conditioning == "class"
    assert read_settings(config).classes == original.CLASSES + 1


U, C, D = (
    "params.unet_config.params",
    "params.first_stage_config.params",
    "params.first_stage_config.params.ddconfig",
)
REFUSED: list[tuple[str, Any]] = [
    ("params.parameterization", "eps_v"),
    ("params.parameterization", 3),
    ("params.parameterization", ["eps"]),
    ("params.beta_schedule", "sigmoid"),
    ("params.beta_schedule", {"a": 1}),
    ("params.timesteps", 0),
    ("params.timesteps", -5),
    ("params.timesteps", 2.5),
    ("params.timesteps", True),
    ("params.timesteps", 10**9),
    ("params.linear_start", "small"),
    ("params.linear_start", 0),
    ("params.linear_start", -0.1),
    ("params.linear_start", True),
    ("params.linear_end", 2.0),
    ("params.linear_end", 0.5),
    ("params.linear_end", float("nan")),
    ("params.cosine_s", "x"),
    ("params.given_betas", [0.1, "x"]),
    ("params.given_betas", 3),
    ("params.given_betas", [0.1, -0.1, 0.1]),
    ("params.scale_factor", 0),
    ("params.scale_factor", "half"),
    ("params.scale_factor", [1]),
    ("params.scale_by_std", "yes"),
    ("params.scale_by_std", True),  # without a buffer
    ("params.conditioning_key", "concat"),
    ("params.conditioning_key", "hybrid"),
    ("params.conditioning_key", "adm"),
    ("params.conditioning_key", "crossattn-adm"),
    ("params.conditioning_key", 7),
    ("params.cond_stage_config", "__is_first_stage__"),
    ("params.cond_stage_config", "__is_unconditional__"),
    ("params.cond_stage_config.target", "ldm.modules.encoders.modules.BERTEmbedder"),
    ("params.cond_stage_config.params.embed_dim", 99),
    ("params.cond_stage_config.params.n_classes", 99),
    ("params.cond_stage_config.params.n_layer", 32),
    ("params.concat_mode", "no"),
    ("params.use_positional_encodings", True),
    ("params.num_timesteps_cond", 5),
    ("params.cond_stage_forward", "encode"),
    ("params.channels", 4),
    ("params.image_size", 16),
    ("params.finetune_keys", ["a"]),
    ("params.offset_noise", 0.1),
    ("target", "ldm.models.diffusion.ddpm.LatentUpscaleDiffusion"),
    ("target", "ldm.models.diffusion.ddpm.LatentInpaintDiffusion"),
    ("target", "ldm.models.diffusion.ddpm.DDPM"),
    ("target", 5),
    ("params", ...),
    ("params", [1]),
    ("params.unet_config", ...),
    ("params.unet_config", "x"),
    ("params.unet_config.params", ...),
    ("params.unet_config.target", "ldm.modules.diffusionmodules.openaimodel.EncoderUNetModel"),
    ("params.unet_config.extra", 1),
    (f"{U}.in_channels", 9),
    (f"{U}.in_channels", 6),
    (f"{U}.in_channels", ...),
    (f"{U}.in_channels", "3"),
    (f"{U}.out_channels", 6),
    (f"{U}.model_channels", 31),
    (f"{U}.model_channels", 10**30),
    (f"{U}.num_res_blocks", [2, 2, 2]),
    (f"{U}.num_res_blocks", 100_000),
    (f"{U}.channel_mult", []),
    (f"{U}.channel_mult", [1] * 17),
    (f"{U}.channel_mult", [1, -2]),
    (f"{U}.channel_mult", {"a": 1}),
    (f"{U}.attention_resolutions", 3),
    (f"{U}.num_heads", 0),
    (f"{U}.num_heads", "one"),
    (f"{U}.num_heads_upsample", 4),
    (f"{U}.transformer_depth", [1, 2]),
    (f"{U}.transformer_depth", 1_000_000),
    (f"{U}.context_dim", ...),
    (f"{U}.context_dim", [12]),
    (f"{U}.use_spatial_transformer", False),
    (f"{U}.conv_resample", False),
    (f"{U}.dims", 3),
    (f"{U}.resblock_updown", True),
    (f"{U}.use_scale_shift_norm", True),
    (f"{U}.use_new_attention_order", True),
    (f"{U}.num_classes", 10),
    (f"{U}.n_embed", 5),
    (f"{U}.use_linear_in_transformer", True),
    (f"{U}.spatial_transformer_attn_type", "softmax-xformers"),
    ("params.first_stage_config", "__is_unconditional__"),
    ("params.first_stage_config.target", "ldm.models.autoencoder.AutoencoderKL"),
    ("params.first_stage_config.target", "ldm.models.autoencoder.VQModel"),
    (f"{C}.n_embed", ...),
    (f"{C}.n_embed", -1),
    (f"{C}.embed_dim", 4),
    (f"{C}.surprise", 4),
    (f"{C}.ddconfig", ...),
    (f"{D}.double_z", True),
    (f"{D}.attn_resolutions", [16]),
    (f"{D}.tanh_out", True),
    (f"{D}.attn_type", "linear"),
    (f"{D}.ch", 33),
    (f"{D}.ch_mult", 2),
    (f"{D}.num_res_blocks", 99),
    (f"{D}.z_channels", ...),
    (f"{D}.surprise", True),
]


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return original.write(tmp_path_factory.mktemp("classes"), original.ON_CLASSES)[0]


@pytest.mark.parametrize(("path", "value"), REFUSED)
def test_settings_that_cannot_be_converted_are_named(
    tmp_path: Path, tiny_checkpoint: Path, path: str, value: Any
) -> None:
    config, folder = tmp_path / "config.yaml", tmp_path / "made"
    config.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(InputError) as error:
        convert_original(tiny_checkpoint, config, folder)
    said = str(error.value)
    assert not folder.exists()
    assert str(config) in said or str(tiny_checkpoint) in said
    key = path.rpartition(".")[2]
    elsewhere = {
        "use_spatial_transformer": "context_dim", "out_channels": "in_channels",
        "model_channels": "unet_config", "ch": "first_stage_config", "params": "model.params",
        "num_res_blocks": "is missing", "n_classes": "cond_stage_model.embedding.weight",
        "linear_end": "noise schedule",
    }  # fmt: skip
    assert key in said or elsewhere.get(key, "given_betas") in said or "noise schedule" in said


@pytest.mark.parametrize(
    "text",
    ["", "3", "model", "model: [1]", "model: {params: 3}", "a: b: c", "[" * 3000, "{}",
     "model: {params: {}}", "model: &a {params: *a}"],
)  # fmt: skip
def test_other_yaml_is_no_yaml_of_a_model(tmp_path: Path, tiny_checkpoint: Path, text: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml"):
        convert_original(tiny_checkpoint, config, tmp_path / "made")


def test_duplicate_keys_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  params: {timesteps: 1}\n  params: {timesteps: 2}\n")
    with pytest.raises(InputError, match=r"params.*twice"):
        convert_original(tiny_checkpoint, config, tmp_path / "made")


BUFFERS: list[tuple[str, torch.Tensor, str]] = [
    ("alphas_cumprod", torch.tensor([0.9, 0.95, 0.1]), "noise schedule is not usable"),
    ("alphas_cumprod", torch.full((1000,), float("nan")), "noise schedule is not usable"),
    ("alphas_cumprod", torch.ones(10, 10), "'alphas_cumprod' has shape"),
    ("alphas_cumprod", torch.zeros(0), "noise schedule is not usable"),
    ("betas", torch.tensor(0.1), "'betas' has shape"),
    ("scale_factor", torch.tensor([1.0, 2.0]), "'scale_factor' is no positive number"),
    ("scale_factor", torch.tensor(float("inf")), "'scale_factor' is no positive number"),
    ("scale_factor", torch.tensor(-1.0), "'scale_factor' is no positive number"),
]


@pytest.mark.parametrize(("name", "value", "said"), BUFFERS)
def test_damaged_buffers_are_named(
    tmp_path: Path, name: str, value: torch.Tensor, said: str
) -> None:
    checkpoint, config, *_ = original.write(tmp_path, original.UNCONDITIONAL, buffers={name: value})
    with pytest.raises(InputError, match=rf"model\.ckpt: .*{said}"):
        convert_original(checkpoint, config, tmp_path / "made")
    assert not (tmp_path / "made").exists()
