"""The embedded model: what ships is what its provenance says, it is smooth and samples alone, and
it draws digits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.linalg import sqrtm
from typer.testing import CliRunner

from ld3_dist.core.errors import InputError
from ld3_dist.models import digits, open_model
from ld3_dist.models.digits import __main__ as command
from ld3_dist.models.digits.data import DATA_FILE
from ld3_dist.models.digits.evaluate import EvaluateConfig, evaluate, nearest
from ld3_dist.models.digits.network import NULL_LABEL, DigitsNetwork, NetworkConfig
from ld3_dist.models.digits.train import TrainConfig, learning_rate, train_network
from ld3_dist.models.embedded.classifier import accuracy
from ld3_dist.models.embedded.evaluate import frechet, halves, teacher_samples
from ld3_dist.models.embedded.train import denoising_loss, draw_sigma, velocity_loss
from ld3_dist.models.weights import save_tensors, sha256_of

RESULTS = Path(__file__).parents[2] / "results" / "models"


def batch(
    n: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [n, 1, 8, 8] at noise levels t [n], and labels [n]."""
    generator = torch.Generator().manual_seed(5)
    t = torch.logspace(-2.5, 1.8, n, dtype=dtype)
    x = (
        torch.randn(n, 1, 8, 8, generator=generator, dtype=dtype)
        * (t[:, None, None, None] ** 2 + 0.5).sqrt()
    )
    return x, t, torch.arange(n) % 10


def provenance(file: Path) -> dict:
    return json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))


def test_data_is_the_digits_of_scikit_learn():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = digits.digits_reference()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert np.array_equal((images[:, 0].numpy() + 1) * 8, source.images)
    assert np.array_equal(labels, source.target)
    images.zero_()  # the caller's own copy
    assert digits.digits_reference()[0].max() == 1


def test_splits_are_disjoint_stratified_and_fixed():
    mask, labels = digits.held_out(), digits.digits_reference()[1]
    share = torch.stack([mask[labels == c].double().mean() for c in range(10)])
    assert mask.sum() == 355
    assert share.min() > 0.19
    assert share.max() < 0.21
    for seed in (0, 1):
        first, second = halves(len(labels), seed)
        assert len(first) == len(second) == 898
        assert len(set(first.tolist()) | set(second.tolist())) == 1796
    assert not torch.equal(halves(1797, 0)[0], halves(1797, 1)[0])


@pytest.mark.parametrize(
    ("part", "limit"), [(digits.NETWORK, 4e6), (digits.FLOW, 4e6), (digits.CLASSIFIER, 1e6)]
)
def test_provenance_describes_the_shipped_weights(part, limit):
    file = part.file
    record = provenance(file)
    assert file.stat().st_size <= limit
    assert record["bytes"] == file.stat().st_size
    assert record["sha256"] == sha256_of(file)
    assert record["data_sha256"] == digits.data_hash() == sha256_of(DATA_FILE)
    net = part.load() if part == digits.CLASSIFIER else part.load_network()[0]
    assert record["parameters"] == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("network", [digits.NETWORK, digits.FLOW])
def test_results_belong_to_the_shipped_weights_and_meet_the_targets(network):
    figures = json.loads((RESULTS / f"{network.model}.json").read_text(encoding="utf-8"))
    assert figures["model_sha256"] == network.hash()
    assert figures["classifier_sha256"] == digits.CLASSIFIER.hash()
    assert figures == provenance(network.file)["quality"]
    assert figures["agreement"] >= 0.95
    assert figures["teacher"]["samples"] == 2000
    assert figures["teacher"]["nfe"] == 50
    assert figures["frechet"]["ratio"] <= 3
    assert figures["frechet"]["ratio_same_size"] <= 3


def test_sigma_data_is_the_spread_of_the_data():
    images = digits.digits_reference()[0].numpy().astype(np.float64)
    assert digits.NETWORK.load_network()[1] == pytest.approx(images.std(ddof=1), abs=5e-5)


def test_gradients_in_input_and_time_are_exact():
    denoiser = digits.NETWORK.load_denoiser(dtype=torch.float64)
    x, t, label = batch(3, torch.float64)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    directions = torch.randn(4, *x.shape, dtype=torch.float64, generator=generator)

    def along(
        s, t
    ):  # random projections of 64 inputs and 64 outputs a sample see them all, and are quick
        return (
            (denoiser(x + torch.einsum("k,kbchw->bchw", s, directions), t, label) * weights)
            .flatten(1)
            .sum(1)
        )

    start = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        along, (start, t.requires_grad_()), eps=1e-6, atol=1e-6, rtol=1e-5
    )


def test_float32_agrees_with_float64():
    x, t, label = batch(40, torch.float64)
    exact = digits.NETWORK.load_denoiser(dtype=torch.float64)(x, t, label)
    rounded = digits.NETWORK.load_denoiser()(x.float(), t.float(), label)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 1e-4
    # float64 states over the float32 network: cast on the way in and out
    mixed = digits.NETWORK.load_denoiser()(x, t, label)
    assert mixed.dtype == torch.float64
    assert (mixed - exact).abs().max() < 1e-4


def test_samples_of_a_batch_do_not_see_each_other():
    denoiser = digits.NETWORK.load_denoiser(dtype=torch.float64)
    x, t, label = batch(7, torch.float64)
    together = denoiser(x, t, label)
    alone = torch.cat([denoiser(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_no_condition_is_the_null_label():
    x, t, label = batch(6)
    denoiser = digits.NETWORK.load_denoiser()
    null = denoiser(x, t, torch.full((6,), NULL_LABEL))
    assert torch.equal(denoiser(x, t, None), null)
    assert torch.equal(digits.NETWORK.load_denoiser(conditional=False)(x, t, label), null)
    assert not torch.allclose(denoiser(x, t, label), null, atol=1e-2)


def test_guidance_is_linear_in_the_scale():
    x, t, label = batch(6, torch.float64)

    def load(scale: float) -> torch.Tensor:
        return digits.NETWORK.load_denoiser(guidance=scale, dtype=torch.float64)(x, t, label)

    one, null = (
        load(1.0),
        digits.NETWORK.load_denoiser(conditional=False, dtype=torch.float64)(x, t),
    )
    torch.testing.assert_close(load(0.0), null)
    torch.testing.assert_close(load(2.5), null + 2.5 * (one - null))


def test_guidance_needs_labels_and_a_finite_scale():
    for guidance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="finite number >= 0"):
            digits.NETWORK.load_denoiser(guidance=guidance)
    with pytest.raises(InputError, match="conditional=True"):
        digits.NETWORK.load_denoiser(guidance=2.0, conditional=False)


def test_labels_are_a_pure_and_uniform_function_of_seed_and_index():
    labels = torch.stack([digits.NETWORK.draw_condition(3, i) for i in range(1000)])
    assert torch.equal(labels[17], digits.NETWORK.draw_condition(3, 17))
    assert labels.dtype == torch.int64
    assert labels.min() == 0
    assert labels.max() == 9
    # chi-squared with 9 degrees of freedom: 27.9 is exceeded once in a thousand
    assert float((labels.bincount(minlength=10) - 100).square().sum()) / 100 < 27.9
    other = torch.stack([digits.NETWORK.draw_condition(4, i) for i in range(100)])
    assert not torch.equal(labels[:100], other)


def test_far_and_near_limits_of_the_denoiser():
    images, labels = digits.digits_reference()
    denoiser = digits.NETWORK.load_denoiser()
    near = denoiser(images[:200], torch.full((200,), 0.002), labels[:200])
    assert (near - images[:200]).abs().max() < 0.02
    # at sigma = 80 nothing of the image is left: the answer is the mean of the class
    x = 80 * torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for c in (0, 1):
        far = denoiser(x, torch.full((200,), 80.0), torch.full((200,), c)).mean(0)
        assert (far - images[labels == c].mean(0)).square().mean().sqrt() < 0.1


def test_classifier_reproduces_its_held_out_accuracy():
    images, labels = digits.digits_reference()
    mask = digits.held_out()
    measured = accuracy(digits.CLASSIFIER.load(), images[mask], labels[mask])
    assert measured == pytest.approx(
        provenance(digits.CLASSIFIER.file)["held_out_accuracy"], abs=1e-3
    )
    assert measured >= 0.98


def test_classifier_features_are_smooth_everywhere():
    net = digits.CLASSIFIER.load(dtype=torch.float64)
    x = digits.digits_reference()[0][:4].double().requires_grad_()
    assert [tuple(m.shape) for m in net.maps(x)] == [(4, 32, 8, 8), (4, 48, 8, 8), (4, 64, 4, 4)]
    assert net.features(x).shape == (4, 64)
    weights = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda x: net.features(x) @ weights, (x,))
    for value in (0.0, -1.0, 1e3):
        flat = torch.full((1, 1, 8, 8), value, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(net.features(flat).sum(), flat)
        assert torch.isfinite(gradient).all()


def test_frechet_distance_against_the_textbook():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(400, 5, generator=generator).double(),
        torch.randn(300, 5, generator=generator).double() * 2 + 1,
    )
    s_a, s_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = float(mean) + np.trace(s_a + s_b - 2 * np.real(sqrtm(s_a @ s_b)))
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + 3) == pytest.approx(45, rel=1e-9)


def test_nearest_excludes_the_image_itself():
    images = digits.digits_reference()[0][:50]
    assert float(nearest(images, images).min()) > 0.01
    assert float(nearest(images, images.clone()).max()) < 1e-6


def test_teacher_draws_the_digits_it_is_asked_for():
    figures = evaluate(EvaluateConfig(samples=300, nfe=20, seed=77))
    # 0.99 of 2,000 were measured; 0.955 is six standard deviations of 300 below
    assert figures["agreement"] >= 0.955
    # 300 samples carry more bias than the halves' 898: 300 real images against the rest lie at
    # twice the yardstick
    assert figures["frechet"]["ratio"] <= 3
    assert figures["outside_range_rms"] < 0.02


def test_samples_do_not_depend_on_the_batch():
    denoiser = digits.NETWORK.load_denoiser(dtype=torch.float32)
    whole, labels = teacher_samples(
        digits.NETWORK, denoiser, EvaluateConfig(samples=12, nfe=8, batch=12)
    )
    parts, _ = teacher_samples(digits.NETWORK, denoiser, EvaluateConfig(samples=12, nfe=8, batch=5))
    assert len(labels) == 12
    assert (whole - parts).abs().max() < 1e-3


def test_loss_is_the_weighted_error_of_the_denoiser():
    """Karras et al. 2022, eq. 8: lambda(sigma) |D - x_0|^2 with lambda = (sigma^2 + sigma_d^2) /
    (sigma sigma_d)^2.
    """
    net, sigma_data = digits.NETWORK.load_network(dtype=torch.float64)
    x_0, labels = (tensor[:20] for tensor in digits.digits_reference())
    z, sigma = (
        torch.randn(20, 1, 8, 8, dtype=torch.float64),
        torch.logspace(-2, 1.5, 20, dtype=torch.float64),
    )
    loss = denoising_loss(net, x_0.double(), sigma, z, labels, sigma_data)
    denoised = digits.NETWORK.denoiser(net, sigma_data)(
        x_0 + sigma[:, None, None, None] * z, sigma, labels
    )
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    error = (denoised - x_0).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, (weight * error).mean())


def test_the_loss_of_flow_matching_is_the_error_of_the_denoiser_over_the_time():
    """u is off by (D - x_0) / t where the denoiser is off by D - x_0."""
    generator = torch.Generator().manual_seed(3)
    net = DigitsNetwork(NetworkConfig(channels=(8, 16), blocks=(1, 1), embedding=16)).double()
    torch.nn.init.normal_(net.leave.weight, generator=generator)
    x_0, z = torch.randn(2, 6, 1, 8, 8, generator=generator, dtype=torch.float64)
    t, labels = torch.linspace(0.05, 0.9, 6, dtype=torch.float64), torch.arange(6)
    loss = velocity_loss(net, x_0, t / (1 - t), z, labels)
    s = t[:, None, None, None]
    denoised = digits.FLOW.denoiser(net, 0.5)((1 - s) * x_0 + s * z, t, labels)
    torch.testing.assert_close(loss, ((denoised - x_0) / s).square().mean())


def test_noise_levels_of_training_are_log_normal():
    config = TrainConfig(batch=4096)
    log = draw_sigma(config, torch.Generator().manual_seed(0)).double().log()
    assert float(log.mean()) == pytest.approx(config.p_mean, abs=0.01)
    assert float(log.std()) == pytest.approx(config.p_std, abs=0.01)
    assert learning_rate(config, config.warmup) == pytest.approx(config.lr, rel=0.01)
    assert learning_rate(config, config.steps) == pytest.approx(0, abs=1e-12)


def test_training_learns_and_repeats():
    sizes = NetworkConfig(channels=(8, 16), blocks=(1, 1), embedding=16)
    runs = [list(train_network(TrainConfig(steps=40, batch=32, warmup=5), sizes)) for _ in range(2)]
    assert runs[0][-1].loss < runs[0][0].loss
    assert [p.loss for p in runs[0]] == [p.loss for p in runs[1]]
    for a, b in zip(
        runs[0][-1].average.parameters(), runs[1][-1].average.parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_command_trains_into_another_file(tmp_path):
    file = tmp_path / "mine.safetensors"
    result = CliRunner().invoke(command.app, ["--steps", "2", "--batch", "8", "--out", str(file)])
    assert result.exit_code == 0, result.output
    record = provenance(file)
    assert record["settings"]["steps"] == 2
    assert record["sha256"] == sha256_of(file)
    x, t, label = batch(2)
    assert digits.NETWORK.load_denoiser(file=file)(x, t, label).shape == x.shape
    assert provenance(digits.NETWORK.file)["sha256"] == digits.NETWORK.hash()


def test_flow_command(tmp_path):
    file = tmp_path / "flow.safetensors"
    result = CliRunner().invoke(
        command.app, ["flow", "--steps", "2", "--batch", "8", "--out", str(file)]
    )
    assert result.exit_code == 0, result.output
    model = open_model(f"digits-flow:{file}")
    assert model.noise.name == "flow"
    assert model.denoiser(torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5), None).shape[0] == 2
    with pytest.raises(InputError, match="digits flow"):
        digits.NETWORK.load_network(file=file)


def test_classifier_command(tmp_path):
    file = tmp_path / "reader.safetensors"
    result = CliRunner().invoke(command.app, ["classifier", "--epochs", "2", "--out", str(file)])
    assert result.exit_code == 0, result.output
    assert provenance(file)["held_out_accuracy"] > 0.5
    assert digits.CLASSIFIER.load(file=file).features(batch(2)[0]).shape == (2, 64)


@pytest.mark.parametrize("load", [digits.NETWORK.load_denoiser, digits.CLASSIFIER.load])
def test_bad_weights_files_name_the_file_and_the_remedy(load, tmp_path):
    whole = digits.NETWORK.file.read_bytes()
    other = digits.CLASSIFIER.file if load == digits.NETWORK.load_denoiser else digits.NETWORK.file
    cases = {
        "missing": None,
        "empty": b"",
        "cut": whole[:100_000],
        "text": b"not weights at all, only text",
    }
    cases["foreign"] = other.read_bytes()
    for name, content in cases.items():
        file = tmp_path / f"{name}.safetensors"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(
            InputError, match=f"{name}.safetensors: .*python -m ld3_dist.models.digits"
        ):
            load(file=file)


def test_weights_that_do_not_fit_name_the_tensor(tmp_path):
    net, sizes = DigitsNetwork(), {"channels": [48, 128], "blocks": [1, 2]}
    tensors = dict(net.state_dict())
    tensors["enter.weight"] = torch.zeros(3)
    file = tmp_path / "odd.safetensors"
    save_tensors(file, tensors, "ld3_dist digits network 1", {"network": sizes, "sigma_data": 0.75})
    with pytest.raises(
        InputError, match=r"odd.safetensors: tensor 'enter.weight' has shape \(3,\)"
    ):
        digits.NETWORK.load_denoiser(file=file)


def test_sizes_and_settings_validate_themselves():
    with pytest.raises(ValueError, match="multiples of groups"):
        NetworkConfig(channels=(12, 16))
    with pytest.raises(ValueError, match="from 1 to 1024"):
        NetworkConfig(blocks=(0, 1))
    with pytest.raises(ValueError, match="steps must be positive"):
        TrainConfig(steps=0)
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\)"):
        TrainConfig(dropout=1.0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "has no config"),
        ([], "has no config"),
        ({}, "network in its header is None"),
        (
            {"network": {"channels": [48, 128]}, "sigma_data": "x"},
            "sigma_data in its header is 'x'",
        ),
        ({"network": {"channels": [48, 128]}, "sigma_data": -1.0}, "must be positive"),
        ({"network": {"chanels": [48, 128]}, "sigma_data": 0.5}, "chanels"),
        ({"network": {"channels": [48, 10**9]}, "sigma_data": 0.5}, "from 1 to 1024"),
        ({"network": {"channels": [48]}, "sigma_data": 0.5}, "two channels"),
        ({"network": {"channels": "large"}, "sigma_data": 0.5}, "no sizes of a digits network"),
        ({"network": {"channels": [1024, 1024]}, "sigma_data": 0.5}, "tensor 'a' is unexpected"),
    ],
)
def test_a_header_with_nonsense_is_bad_input(tmp_path: Path, config: Any, words: str) -> None:
    file = tmp_path / "network.safetensors"
    header = json.dumps({"kind": digits.NETWORK.kind, "config": config})
    file.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {"ld3_dist": header}))
    with pytest.raises(InputError, match=words) as error:
        open_model(f"digits:{file}")
    assert str(file) in str(error.value)
