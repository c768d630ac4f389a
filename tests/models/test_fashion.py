"""The model `fashion`: its data reader refuses other files, its network is smooth, a run
resumes."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ld3_dist.core.errors import InputError
from ld3_dist.models.fashion import __main__ as command
from ld3_dist.models.fashion.classifier import FashionClassifier, load_fashion_classifier
from ld3_dist.models.fashion.data import FashionData, read_fashion, read_idx, scale
from ld3_dist.models.fashion.evaluate import frechet, nearest
from ld3_dist.models.fashion.network import NULL_LABEL, FashionNetwork, NetworkConfig
from ld3_dist.models.fashion.opening import load_fashion_denoiser
from ld3_dist.models.fashion.reference import load_fashion_reference
from ld3_dist.models.fashion.train import (
    TrainConfig,
    draw_sigma,
    learning_rate,
    measure_sigma_data,
    train_network,
)

SMALL = NetworkConfig((16, 32), (1, 1, 1), 32)


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file that holds this array of bytes."""
    head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_folder(folder: Path, n: int = 24) -> Path:
    """Four small IDX files of random images, two of them compressed."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "t10k"):
        images = idx(random.integers(0, 256, (n, 28, 28)))
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) % 10))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> FashionData:
    return read_fashion(write_folder(tmp_path / "data"))


def randomized(sizes: NetworkConfig = SMALL) -> FashionNetwork:
    """A network whose zero-initialised layers are random too."""
    torch.manual_seed(0)
    net = FashionNetwork(sizes).double().eval().requires_grad_(False)
    for p in net.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=0.05)
    return net


def test_reader_takes_plain_and_compressed_files(data):
    assert data.train_images.shape == (24, 28, 28)
    assert data.test_labels.tolist() == [i % 10 for i in range(24)]
    images = scale(data.train_images)
    assert images.shape == (24, 1, 28, 28)
    assert images.min() == -1
    assert images.max() == 1
    assert measure_sigma_data(data.train_images) == pytest.approx(
        float(images.double().std()), abs=2e-4
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.zeros((3, 28, 28)))[:-1], "truncated"),
        (idx(np.zeros((3, 28, 28)))[:9], "truncated"),
        (idx(np.zeros((3, 28, 28))) + b"x", "too long"),
        (idx(np.zeros(3)), "not an IDX file of images"),
        (b"", "not an IDX file of images"),
        (gzip.compress(idx(np.zeros((3, 28, 28))))[:-9], "cannot be read"),
    ],
)
def test_reader_refuses_damaged_files(tmp_path, content, message):
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_idx(file, "images")
    assert str(file) in str(caught.value)
    assert "dataset-fashion-mnist" in str(caught.value)


def test_reader_refuses_files_that_do_not_belong_together(tmp_path):
    with pytest.raises(InputError, match="file not found"):
        read_fashion(tmp_path)
    folder = write_folder(tmp_path)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(5)))
    with pytest.raises(InputError, match="5 labels for 24 images"):
        read_fashion(folder)
    labels.write_bytes(idx(np.full(24, 10)))
    with pytest.raises(InputError, match="label 10"):
        read_fashion(folder)
    (folder / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((24, 8, 8))))
    with pytest.raises(InputError, match="8x8 pixels"):
        read_fashion(folder)


def test_network_has_the_size_that_was_promised():
    assert 1e6 <= sum(p.numel() for p in FashionNetwork().parameters()) <= 3e6
    with pytest.raises(ValueError, match="multiples of groups"):
        NetworkConfig(channels=(64, 100))


def test_network_is_exact_in_its_gradients_and_keeps_samples_apart():
    net = randomized()
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t, label = torch.tensor([-1.5, 0.0, 1.1], dtype=torch.float64), torch.tensor([0, 9, NULL_LABEL])
    out = net(x, t, label)
    assert out.shape == x.shape
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(out, alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(net(x, t), net(x, t, torch.full((3,), NULL_LABEL)))

    def along(s, t):  # one random direction of the input sees all pixels, and is quick
        return (net(x + s * x.flip(0), t, label) * x).sum()

    s = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (s, t.requires_grad_()), atol=1e-6, rtol=1e-5)


def test_classifier_gives_features_maps_and_logits():
    net, x = FashionClassifier().eval(), torch.randn(4, 1, 28, 28)
    assert [m.shape[1:] for m in net.maps(x)] == [(32, 28, 28), (64, 14, 14), (128, 7, 7)]
    assert net.features(x).shape == (4, 128)
    assert net(x).shape == (4, 10)


def test_learning_rate_rises_and_ends_at_zero():
    config = TrainConfig(steps=1000, warmup=10, lr=1.0)
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert rates.index(max(rates)) in range(9, 12)
    assert rates[-1] < 1e-4
    assert learning_rate(config, 900, None) == 1


def test_noise_levels_are_stratified():
    config = TrainConfig(batch=400)
    log_sigma = draw_sigma(config, torch.Generator().manual_seed(0)).log()
    assert float(log_sigma.mean()) == pytest.approx(config.p_mean, abs=0.02)
    assert float(log_sigma.std()) == pytest.approx(config.p_std, abs=0.05)
    assert torch.equal(log_sigma, log_sigma.sort().values)


def test_training_resumes_where_it_was_stopped(data, tmp_path, monkeypatch):
    config = TrainConfig(steps=6, batch=8, report=2)
    whole = list(train_network(config, data, SMALL))[-1].average
    seconds = iter(range(0, 10_000, 100))  # every look at the clock is more than a minute later
    monkeypatch.setattr("ld3_dist.models.fashion.train.time.perf_counter", lambda: next(seconds))
    state = tmp_path / "state.safetensors"
    part = train_network(config, data, SMALL, state)
    assert next(part).step == 2
    part.close()
    resumed = list(train_network(config, data, SMALL, state))
    assert [p.step for p in resumed] == [4, 6]
    for a, b in zip(whole.parameters(), resumed[-1].average.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="other settings"):
        next(train_network(TrainConfig(steps=6, batch=4), data, SMALL, state))


def test_training_ends_with_its_minutes(data):
    config = TrainConfig(minutes=0.02, batch=4, report=1)
    *_, last = train_network(config, data, SMALL)
    assert last.step == last.steps
    assert last.seconds < 5


def test_frechet_distance_and_nearest_images_of_known_sets():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + 2) == pytest.approx(20)
    images = torch.randn(6, 1, 28, 28, generator=generator)
    assert nearest(images, images + 0.5).tolist() == pytest.approx([0.5] * 6, rel=1e-4)


def test_one_command_makes_everything(tmp_path):
    folder, out = write_folder(tmp_path / "data", 60), tmp_path / "out"
    words = ["--data", str(folder), "--out", str(out), "--tiny", "--device", "cpu"]
    assert command.main(words) == 0
    names = {"classifier", "network"}
    found = {file.name for file in out.iterdir()}
    wanted = {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")}
    assert found == wanted | {"reference.safetensors", "quality.json", "sheet.png"}
    record = json.loads((out / "network.json").read_text(encoding="utf-8"))
    assert record["quality"] == json.loads((out / "quality.json").read_text(encoding="utf-8"))
    assert record["settings"]["steps"] == record["done"] == 12
    denoiser = load_fashion_denoiser(guidance=1.5, file=out / "network.safetensors")
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([0.1, 10.0])
    assert denoiser(x, t, torch.tensor([3, 4])).shape == x.shape
    reference = load_fashion_reference(out / "reference.safetensors")
    classifier = load_fashion_classifier(file=out / "classifier.safetensors")
    features = classifier.features(scale(read_fashion(folder).test_images))
    torch.testing.assert_close(reference.features, features, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(reference.mean, features.double().mean(0), rtol=1e-5, atol=1e-5)


def test_package_needs_little():
    code = "import sys, ld3_dist.models.fashion.__main__; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"ray", "optuna", "pandas", "pyarrow", "pydantic", "typer", "rich", "matplotlib", "PIL"}
    assert not heavy & set(done.stdout.split())
