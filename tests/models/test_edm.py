"""EDM checkpoints: pickles in the published form are written here, by hand, and read without being
executed.
"""

from __future__ import annotations

import io
import os
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from edm_pickles import (
    ADM,
    NCSN,
    SIZE,
    SONG,
    VARIANTS,
    content,
    tiny_network,
    write,
)

from ld3_dist.core.denoiser import Denoiser
from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import EDM, VPLinear
from ld3_dist.models import ModelOptions, open_model
from ld3_dist.models.edm import download
from ld3_dist.models.edm.opening import NO_LABEL, build_network, convert
from ld3_dist.models.edm.unpickle import Checkpoint


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.siblings(3)
def test_a_checkpoint_loads_and_converts(
    tmp_path: Path, format_modules: None, variant: str, classes: int
) -> None:
    arguments = {**VARIANTS[variant], **SIZE, "label_dim": classes}
    net = write(tmp_path / "net.pkl", arguments)
    model = open_model(f"edm:{tmp_path / 'net.pkl'}")
    assert isinstance(model.denoiser, Denoiser)
    assert (model.image_shape, model.latent, model.conditioning) == (
        (3, 8, 8),
        False,
        "class" if classes else "none",
    )
    assert not (Path.cwd() / "CANARY").exists()
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 20.0])
    label = model.draw_condition(0, range(3))
    sigma = t[:, None, None, None]
    out = net((x / (sigma**2 + 0.25).sqrt()), t.log() / 4, label)
    expected = 0.25 / (sigma**2 + 0.25) * x + 0.5 * sigma / (sigma**2 + 0.25).sqrt() * out
    torch.testing.assert_close(model.denoiser(x, t, label), expected)
    convert(tmp_path / "net.pkl", tmp_path / "net.safetensors")
    converted = open_model(f"edm:{tmp_path / 'net.safetensors'}")
    assert converted.hash == model.hash
    assert torch.equal(converted.denoiser(x, t, label), model.denoiser(x, t, label))


def test_preconditionings(tmp_path: Path, format_modules: None) -> None:
    x, sigma = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    x, s = x.double(), sigma[:, None, None, None]
    net = write(tmp_path / "vp.pkl", {**SONG, **SIZE}, "VPPrecond").double()
    model = open_model(f"edm:{tmp_path / 'vp.pkl'}", ModelOptions(dtype="float64"))
    noise = model.denoiser.noise
    assert noise == VPLinear(0.1, 20.0, 1e-3, 1.0)
    t = (
        (0.1**2 + 2 * 19.9 * (1 + sigma**2).log()).sqrt() - 0.1
    ) / 19.9  # sigma = sqrt(exp(int beta) - 1), inverted
    expected = x - s * net(x / (s**2 + 1).sqrt(), 999 * t)
    torch.testing.assert_close(model.denoiser(x / (s**2 + 1).sqrt(), t), expected)
    net = write(tmp_path / "ve.pkl", {**NCSN, **SIZE}, "VEPrecond").double()
    model = open_model(f"edm:{tmp_path / 've.pkl'}", ModelOptions(dtype="float64"))
    assert model.denoiser.noise == EDM(0.02, 100.0)
    torch.testing.assert_close(
        model.denoiser(x, sigma), x - s * net(x, (sigma / 2).log())
    )  # the sign is in `net`


@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_are_differentiable_in_x_and_time(variant: str) -> None:
    net = tiny_network("EDMPrecond", {**VARIANTS[variant], **SIZE}).double().requires_grad_(False)
    direction = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def along(step: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return (net(x + step * direction, time) * direction).sum((1, 2, 3))

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    time = torch.tensor([-0.3, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (step, time))


def test_no_layer_mixes_samples() -> None:
    for arguments in VARIANTS.values():
        net = tiny_network("EDMPrecond", {**arguments, **SIZE})
        x, time = torch.randn(4, 3, 8, 8), torch.randn(4)
        together = net(x, time)
        apart = torch.cat([net(x[i : i + 1], time[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_classes_and_guidance(tmp_path: Path, format_modules: None) -> None:
    file = tmp_path / "net.pkl"
    write(file, {**ADM, **SIZE, "label_dim": 4})
    for options in ({"guidance": 2.0}, {"conditional": False}):
        with pytest.raises(InputError, match="label_dropout=0"):
            open_model(f"edm:{file}", ModelOptions(**options))
    write(file, {**ADM, **SIZE, "label_dim": 4, "label_dropout": 0.1})
    plain = open_model(f"edm:{file}").denoiser
    guided = open_model(f"edm:{file}", ModelOptions(guidance=2.0))
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 20.0])
    label = guided.draw_condition(1, range(3))
    assert isinstance(label, torch.Tensor)
    null = plain(x, t, torch.full_like(label, NO_LABEL))
    torch.testing.assert_close(null, plain(x, t))
    expected = null + 2 * (plain(x, t, label) - null)
    torch.testing.assert_close(guided.denoiser(x, t, label), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(null, plain(x, t, label))
    assert open_model(f"edm:{file}", ModelOptions(conditional=False)).draw_condition(0, [1]) is None
    with pytest.raises(InputError, match="contradicts"):
        open_model(f"edm:{file}", ModelOptions(conditional=False, guidance=2.0))
    write(file, {**SONG, **SIZE})
    with pytest.raises(InputError, match="unconditional: guidance"):
        open_model(f"edm:{file}", ModelOptions(guidance=2.0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_time_and_frequencies(
    tmp_path: Path, format_modules: None, dtype: str
) -> None:
    file = tmp_path / "net.pkl"
    net = write(file, {**NCSN, **SIZE})
    model = open_model(f"edm:{file}", ModelOptions(dtype=dtype))
    half = model.denoiser.net.model  # type: ignore[attr-defined]
    assert torch.equal(half.map_noise.freqs, net.model.map_noise.freqs)
    assert half.map_layer0.weight.dtype == getattr(torch, dtype)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 20.0])
    out = model.denoiser(x, t)
    assert out.dtype == torch.float32
    exact = open_model(f"edm:{file}").denoiser(x, t)
    assert (out - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


PUBLISHED = [  # millions of parameters; the first, third and last as stated by the papers
    ({"channel_mult": [2, 2, 2], "img_resolution": 32}, 55.7),
    ({"channel_mult": [2, 2, 2], "img_resolution": 32, "label_dim": 10}, 55.7),
    ({"channel_mult": [1, 2, 2, 2], "img_resolution": 64}, 61.8),
    (
        {"model_type": "DhariwalUNet", "img_resolution": 64, "label_dim": 1000, "augment_dim": 0},
        295.9,
    ),
]


@pytest.mark.parametrize(("arguments", "millions"), PUBLISHED)
def test_published_parameter_counts(arguments: dict[str, Any], millions: float) -> None:
    arguments = {"model_type": "SongUNet", "augment_dim": 9, "img_channels": 3, **arguments}
    with torch.device("meta"):
        net = build_network(Checkpoint("EDMPrecond", arguments, {}), Path("published"))
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


class Evil:
    """Runs a command when unpickled."""

    def __init__(self, canary: Path, inner: bool = False) -> None:
        self.canary, self.inner = canary, inner

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.inner:
            return os.system, (f"touch {self.canary}",)
        # the command hides in the bytes of a tensor
        return torch.storage._load_from_bytes, (pickle.dumps(Evil(self.canary)),)


@pytest.mark.parametrize(("inner", "said"), [(False, r"system"), (True, "inside a tensor")])
def test_a_malicious_pickle_runs_nothing(
    tmp_path: Path, format_modules: None, inner: bool, said: str
) -> None:
    file, canary = tmp_path / "net.pkl", tmp_path / "canary"
    write(file, {**SONG, **SIZE}, evil=Evil(canary, inner))
    with pytest.raises(
        InputError, match=f"refers to .*{said}.*nothing in it was executed"
    ) as error:
        open_model(f"edm:{file}")
    assert str(file) in str(error.value)
    assert not canary.exists()
    pickle.loads(
        pickle.dumps(Evil(canary))
    )  # the same object does run when trusted: the test has teeth
    assert canary.exists()


@pytest.mark.parametrize(
    "target", ["builtins.eval", "builtins.getattr", "torch.load", "importlib.import_module"]
)
def test_no_other_name_is_resolved(tmp_path: Path, target: str) -> None:
    module, name = target.rsplit(".", 1)
    file = tmp_path / "net.pkl"
    text = "__import__('os').mkdir('x')"
    file.write_bytes(b"c" + f"{module}\n{name}\n".encode() + f"(V{text}\ntR.".encode())
    with pytest.raises(InputError, match=target):
        open_model(f"edm:{file}")


def test_truncated_and_foreign_files(tmp_path: Path, format_modules: None) -> None:
    file = tmp_path / "net.pkl"
    write(file, {**SONG, **SIZE})
    whole = file.read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"net.pkl: (truncated|damaged)"):
            open_model(f"edm:{file}")
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"net\.pkl: .*not an EDM pickle"):
        open_model(f"edm:{file}")
    file.write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(InputError, match=r"no network under 'ema'.*model"):
        open_model(f"edm:{file}")
    with pytest.raises(InputError, match="not found"):
        open_model(f"edm:{tmp_path / 'nothing.pkl'}")
    with pytest.raises(InputError, match=r"https://.*/edm-cifar10-32x32-uncond-vp\.pkl"):
        open_model(f"edm:{tmp_path / 'edm-cifar10-32x32-uncond-vp.pkl'}")
    (tmp_path / "x.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match=r"x\.safetensors"):
        open_model(f"edm:{tmp_path / 'x.safetensors'}")


def test_wrong_architectures_are_named(tmp_path: Path, format_modules: None) -> None:
    file, arguments = tmp_path / "net.pkl", {**SONG, **SIZE}
    net = tiny_network("EDMPrecond", arguments)

    def attempt(given: dict[str, Any], class_name: str = "EDMPrecond", **state: Any) -> str:
        file.write_bytes(pickle.dumps(content(net, class_name, given, **state)))
        with pytest.raises(InputError) as error:
            open_model(f"edm:{file}")
        assert str(file) in str(error.value)
        return str(error.value)

    assert "iDDPMPrecond" in attempt(arguments, "iDDPMPrecond")
    assert "'DiT'" in attempt({**arguments, "model_type": "DiT"})
    assert "encoder_type" in attempt({**arguments, "encoder_type": "skip"})
    assert "'width'" in attempt({**arguments, "width": 3})
    assert "img_resolution=None" in attempt(
        {k: v for k, v in arguments.items() if k != "img_resolution"}
    )
    assert "is missing" in attempt({**arguments, "label_dim": 3})
    assert "has shape" in attempt({**arguments, "model_channels": 16})
    assert "has no place" in attempt({**arguments, "augment_dim": 0})
    assert "too small" in attempt({**arguments, "channel_mult": [1] * 6})
    assert "_init_kwargs" in attempt(arguments, _init_kwargs=None)
    del net.model.enc["8x8_block0"]._modules["conv1"]
    assert "'model.enc.8x8_block0.conv1.weight' is missing" in attempt(arguments)


def test_urls_are_cached_and_failures_explained(
    tmp_path: Path, format_modules: None, monkeypatch
) -> None:
    monkeypatch.setenv("LD3_DIST_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "net.pkl", {**SONG, **SIZE})
    data = (tmp_path / "net.pkl").read_bytes()
    calls = []

    class Response(io.BytesIO):
        headers: dict[str, str]

    def answer(url: str, timeout: float, cut: int = 0) -> Response:
        calls.append(url)
        response = Response(data[: len(data) - cut])
        response.headers = {"Content-Length": str(len(data))}
        return response

    def unreachable(url: str, timeout: float) -> Response:
        raise urllib.error.URLError("no network")

    url = "https://example.org/edm/net.pkl"
    for opener, said in (
        (unreachable, "no network"),
        (lambda u, timeout: answer(u, timeout, cut=9), "bytes arrived"),
    ):
        monkeypatch.setattr(download.urllib.request, "urlopen", opener)
        with pytest.raises(InputError, match=f"{url}.*{said}"):
            open_model(f"edm:{url}")
        assert not [f for f in (tmp_path / "cache").glob("*") if f.is_file()]
    monkeypatch.setattr(download.urllib.request, "urlopen", answer)
    calls.clear()
    first, second = open_model(f"edm:{url}"), open_model(f"edm:{url}")
    assert first.hash == second.hash
    assert len(calls) == 1
