"""Training of `fashion`: the data reader refuses other files, a run repeats and resumes."""

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
from schedules import one_thread  # noqa: F401

from ld3_dist.core.errors import InputError
from ld3_dist.models import fashion
from ld3_dist.models.embedded.train import draw_sigma
from ld3_dist.models.fashion import __main__ as command
from ld3_dist.models.fashion.data import FashionData, read_fashion, read_idx, scale
from ld3_dist.models.fashion.network import NetworkConfig
from ld3_dist.models.fashion.train import (
    TrainConfig,
    learning_rate,
    measure_sigma_data,
    train_network,
)
from ld3_dist.models.weights import sha256_of

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
        (gzip.compress(idx(np.zeros((3, 28, 28))), mtime=0)[:-9], "cannot be read"),
    ],
    ids=["cut", "head", "long", "labels", "empty", "half"],
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


@pytest.mark.slow  # quicker: test_the_tiny_command_repeats
def test_training_learns_and_repeats(data):
    config = TrainConfig(steps=150, batch=8, warmup=5, report=50)
    runs = [list(train_network(config, data, SMALL)) for _ in range(2)]
    assert runs[0][-1].loss < runs[0][0].loss
    assert [p.loss for p in runs[0]] == [p.loss for p in runs[1]]
    for a, b in zip(
        runs[0][-1].average.parameters(), runs[1][-1].average.parameters(), strict=True
    ):
        assert torch.equal(a, b)


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
    denoiser = fashion.NETWORK.load_denoiser(guidance=1.5, file=out / "network.safetensors")
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([0.1, 10.0])
    assert denoiser(x, t, torch.tensor([3, 4])).shape == x.shape
    reference = fashion.load_fashion_reference(
        out / "reference.safetensors", out / "classifier.safetensors"
    )
    classifier = fashion.CLASSIFIER.load(file=out / "classifier.safetensors")
    features = classifier.features(scale(read_fashion(folder).test_images))
    torch.testing.assert_close(reference.features, features, rtol=2e-3, atol=2e-3)
    mean, covariance = reference.moments.mean, reference.moments.covariance
    torch.testing.assert_close(mean, features.double().mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(covariance, features.double().T.cov(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="another classifier"):
        fashion.load_fashion_reference(out / "reference.safetensors")
    assert json.loads((out / "classifier.json").read_text(encoding="utf-8"))["command"] == (
        "python -m ld3_dist.models.fashion --data FOLDER --out FOLDER --tiny --device cpu"
    )


def test_the_tiny_command_repeats(tmp_path):
    folder = write_folder(tmp_path / "data", 40)
    hashes = []
    for out in (tmp_path / "a", tmp_path / "b"):
        words = ["classifier", "statistics", "network", "--tiny", "--device", "cpu"]
        assert command.main([*words, "--data", str(folder), "--out", str(out)]) == 0
        hashes.append([sha256_of(file) for file in sorted(out.glob("*.safetensors"))])
    assert len(hashes[0]) == 3
    assert hashes[0] == hashes[1]


def test_package_needs_little():
    code = (
        "import sys, ld3_dist.models.fashion.__main__, ld3_dist.models.fashion.opening; "
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"ray", "optuna", "pandas", "pyarrow", "pydantic", "typer", "rich", "matplotlib", "PIL"}
    assert not heavy & set(done.stdout.split())
