"""From names to denoisers: analytic names, user code, options, conditions; bad input is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ld3_dist.core.denoiser import Denoiser, NetworkDenoiser
from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import EDM
from ld3_dist.models import (
    Model,
    ModelOptions,
    draw_class,
    families,
    load_model,
    open_model,
    to_device,
)
from ld3_dist.models.fingerprint import weights_hash

ANALYTIC = [
    "analytic:gaussian?shape=3x4x4&std=0.3&mean=0.1",
    "analytic:mixture-1d?noise=vp-linear&t_min=0.01",
    "analytic:mixture-2d?components=5&noise=vp-cosine&t_max=0.99",
    "analytic:mixture?means=-1,0;1,0.5&stds=0.2,0.3&weights=1,2&noise=flow",
    "analytic:random-mixture?shape=1x8x8&components=3&seed=4",
    "analytic:heavy-tails?df=2&shape=4",
]


@pytest.mark.parametrize("spec", ANALYTIC)
def test_analytic_names(spec: str) -> None:
    model = open_model(spec)
    assert isinstance(model.denoiser, Denoiser)
    assert model.id == spec
    assert len(model.hash) == 64
    assert model.hash == open_model(spec).hash
    noise = model.denoiser.noise
    x, t = torch.randn(3, *model.denoiser.shape), torch.full((3,), 0.5 * noise.t_max)
    assert load_model(spec).denoiser(x, t).shape == x.shape
    assert model.draw_condition(0, range(3)) is None


def test_analytic_parameters_reach_the_model() -> None:
    model = open_model(ANALYTIC[1])
    assert (model.denoiser.noise.t_min, model.denoiser.noise.name) == (0.01, "vp-linear")
    assert open_model(ANALYTIC[0]).hash != open_model("analytic:gaussian?shape=3x4x4&std=0.4").hash
    far = open_model("analytic:gaussian?shape=2&mean=0.7").denoiser(
        torch.zeros(1, 2), torch.tensor([80.0])
    )
    torch.testing.assert_close(far, torch.full((1, 2), 0.7), rtol=0, atol=1e-4)


def test_empirical_reads_npy_and_safetensors(tmp_path: Path) -> None:
    data = torch.randn(6, 1, 2, 2)
    numpy.save(tmp_path / "d.npy", data.numpy())
    save_file({"data": data, "labels": torch.arange(6)}, tmp_path / "d.safetensors")
    x, t = data + 0.001, torch.full((6,), 0.01)
    for name in ("d.npy", "d.safetensors"):
        torch.testing.assert_close(
            load_model(f"analytic:empirical?data={tmp_path / name}").denoiser(x, t), data
        )
    model = open_model(
        f"analytic:empirical?data={tmp_path / 'd.safetensors'}", ModelOptions(conditional=True)
    )
    labels = model.draw_condition(0, range(4))
    assert isinstance(labels, torch.Tensor)
    torch.testing.assert_close(
        model.denoiser(80 * torch.randn(4, 1, 2, 2), torch.full((4,), 80.0), labels), data[labels]
    )
    save_file({"images": data}, tmp_path / "e.safetensors")
    with pytest.raises(InputError, match=r"no tensor 'data'.*images"):
        open_model(f"analytic:empirical?data={tmp_path / 'e.safetensors'}")


def test_conditions_belong_to_the_sample() -> None:
    draw = draw_class(range(10))
    together = draw(3, range(200))
    assert isinstance(together, torch.Tensor)
    assert together.dtype == torch.int64
    assert [int(draw(3, [i])[0]) for i in range(200)] == together.tolist()  # type: ignore[index]
    assert together.tolist() != draw(4, range(200)).tolist()  # type: ignore[union-attr]
    counts = torch.bincount(together, minlength=10)
    assert counts.min() > 5
    assert counts.max() < 40


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("analitic:x", ["analitic", "did you mean 'analytic'"]),
        ("analytic:", ["must follow the colon"]),
        ("analytic:gausian", ["gausian", "'gaussian'"]),
        ("analytic:gaussian?stdd=3", ["stdd", "did you mean 'std'"]),
        ("analytic:gaussian?std=wide", ["std='wide'"]),
        ("analytic:gaussian?shape=0x3", ["shape='0x3'"]),
        ("analytic:gaussian?std=-1", ["not negative"]),
        ("analytic:gaussian?noise=vp", ["'vp'", "vp-linear"]),
        ("analytic:mixture-1d?noise=vp-linear&beta_0=30", ["beta_0"]),
        ("analytic:mixture?means=0;1", ["needs means", "stds"]),
        ("analytic:empirical", ["data=FILE"]),
        ("analytic:empirical?data=/nowhere/x.npy", ["/nowhere/x.npy"]),
        ("python:torch", ["python:MODULE:FACTORY"]),
        ("python:no_such_module:build", ["no_such_module", "PYTHONPATH"]),
        ("python:/nowhere/m.py:build", ["/nowhere/m.py"]),
        ("python:json:dmups", ["dmups", "did you mean 'dumps'"]),
    ],
)
def test_bad_names_say_what_to_do(spec: str, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        open_model(spec)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float4"}, ["float4", "bfloat16"]),
        ({"device": "gpu"}, ["'gpu'"]),
        ({"device": "cuda:99"}, ["cuda:99", "visible"]),
        ({"guidance": -1.0}, ["guidance -1.0"]),
        ({"guidance": float("nan")}, ["guidance nan"]),
        ({"prompts": "a", "classes": "b"}, ["one of the two"]),
        ({"shift": 0.0}, ["shift 0.0"]),
        ({"size": (0, 3)}, ["size (0, 3)"]),
    ],
)
def test_bad_options_say_what_to_do(options: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        ModelOptions(**options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "options",
    [{"guidance": 2.0}, {"conditional": True}, {"classes": "c.txt"}, {"prompts": "p.txt"}],
)
def test_an_unconditional_model_refuses_conditions(options: dict) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        open_model("analytic:heavy-tails", ModelOptions(**options))


def test_classes_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("1 3\n3\n")
    model = open_model("analytic:mixture-2d", ModelOptions(classes=str(file)))
    assert model.conditioning.startswith("class:classes.txt:")
    drawn = model.draw_condition(0, range(50))
    assert isinstance(drawn, torch.Tensor)
    assert set(drawn.tolist()) == {1, 3}
    file.write_text("1 2\n")
    assert (
        open_model("analytic:mixture-2d", ModelOptions(classes=str(file))).conditioning
        != model.conditioning
    )
    file.write_text("1 8\n")
    with pytest.raises(InputError, match="class '8' is not a number from 0 to 7"):
        open_model("analytic:mixture-2d", ModelOptions(classes=str(file)))
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        open_model("digits", ModelOptions(classes="nowhere.txt"))
    file.write_text(" \n")
    with pytest.raises(InputError, match="is empty"):
        open_model("analytic:mixture-2d", ModelOptions(classes=str(file)))


MODULE = """
import torch
from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.noise import EDM
from ld3_dist.models import Model, draw_class, to_device

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x, time, condition):
        return self.inner(x) if condition is None else self.inner(x) + condition[:, None].to(x)

def build(options):
    torch.manual_seed(0)
    return NetworkDenoiser(to_device(Net(), options), EDM(), (4,), "data")

def build_classes(options):
    return Model(build(options), "mine", "0" * 64, "class", draw_class(range(3)), None, (4,), {})

def nothing(options):
    return torch.nn.Linear(2, 2)

def narrow(options):
    d = build(options)
    d.shape = (2, 4)
    d.net = torch.nn.Identity()
    d.net.forward = lambda x, t, c: x[:, 0]
    return d
"""


def test_user_code(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MODULE)
    model = open_model(f"python:{file}:build")
    assert model.image_shape == (4,)
    assert len(model.hash) == 64
    assert not model.latent
    classes = open_model(f"python:{file}:build_classes")
    assert isinstance(classes.draw_condition(0, [1, 2]), torch.Tensor)
    with pytest.raises(InputError, match="lacks noise"):
        open_model(f"python:{file}:nothing")
    with pytest.raises(InputError, match="shapes must be equal"):
        open_model(f"python:{file}:narrow")
    with pytest.raises(InputError, match="unconditional"):
        open_model(f"python:{file}:build", ModelOptions(guidance=2.0))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def build(options:", ["fails while it is imported", "line 1"]),
        ("import no_such_neighbour", ["no_such_neighbour", "repair the file"]),
        (
            "def build(options):\n    raise RuntimeError('no weights')",
            ["the factory fails", "no weights"],
        ),
        ("def build():\n    pass", ["the factory fails", "called with the model's options"]),
        ("def build(options):\n    return None", ["NoneType", "lacks noise"]),
        ("def biuld(options):\n    pass", ["'build'", "did you mean 'biuld'"]),
        ("build = 3", ["is a int", "(options) -> Denoiser"]),
    ],
)
def test_user_code_that_fails_is_named(tmp_path: Path, body: str, words: list[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(body)
    with pytest.raises(InputError) as error:
        open_model(f"python:{file}:build")
    for word in [str(file), *words]:
        assert word in str(error.value)


def test_user_code_leaves_pytorch_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "rude.py"
    file.write_text(
        f"{MODULE}\ntorch.manual_seed(5)\ntorch.set_grad_enabled(False)\n"
        "torch.set_default_dtype(torch.float64)\n"
    )
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    open_model(f"python:{file}:build")
    assert torch.equal(torch.rand(2), expected)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_a_neighbour_of_the_user_s_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "my_network_beside.py").write_text(MODULE)
    file = tmp_path / "mine.py"
    file.write_text("from my_network_beside import build")
    assert open_model(f"python:{file}:build").image_shape == (4,)


def test_a_family_from_elsewhere() -> None:
    def open_square(rest: str, options: ModelOptions) -> Model:
        found = open_model(f"analytic:gaussian?shape={rest}x{rest}", options)
        return replace(found, id=f"square:{rest}")

    families.register("square", open_square)
    families.register("wrong", lambda rest, options: None)  # type: ignore[arg-type, return-value]
    try:
        assert load_model("square:3", device="cpu").image_shape == (3, 3)
        with pytest.raises(InputError, match="did you mean 'square'"):
            open_model("sqare:3")
        with pytest.raises(InputError, match=r"'wrong' returned NoneType"):
            open_model("wrong:3")
    finally:
        del families._entries["square"], families._entries["wrong"]


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, condition: None) -> torch.Tensor:
        return torch.tanh(self.inner(x)) * time[:, None, None, None].to(x.dtype)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"dtype": "float64"}])
def test_placement_changes_no_result(options: dict) -> None:
    torch.manual_seed(0)
    net = Convolution()
    plain = NetworkDenoiser(net, EDM(), (3, 5, 5))
    placed_options = ModelOptions(**options)
    x, t = torch.randn(2, 3, 5, 5, requires_grad=True), torch.tensor([0.3, 0.9])
    expected = plain(x, t)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), x)
    placed = NetworkDenoiser(
        to_device(net, placed_options), EDM(), (3, 5, 5), dtype=placed_options.torch_dtype
    )
    got = placed(x, t)
    (got_grad,) = torch.autograd.grad(got.square().sum(), x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got_grad, expected_grad)


def test_a_half_precision_network_keeps_a_float32_state() -> None:
    options = ModelOptions(dtype="bfloat16")
    net = to_device(Convolution(), options)
    assert next(net.parameters()).dtype == torch.bfloat16
    x = torch.randn(2, 3, 5, 5)
    out = NetworkDenoiser(net, EDM(), (3, 5, 5), dtype=options.torch_dtype)(
        x, torch.tensor([0.3, 0.9])
    )
    assert out.dtype == torch.float32


def test_the_hash_sees_every_byte_and_no_order() -> None:
    a, b = torch.randn(3), torch.randn(2, 2).bfloat16()
    assert weights_hash({"a": a, "b": b}, {"x": 1, "y": 2}) == weights_hash(
        {"b": b, "a": a}, {"y": 2, "x": 1}
    )
    changed = a.clone()
    changed[2] += 1e-6
    hashes = {
        weights_hash(tensors, config)
        for tensors, config in [
            ({"a": a}, {}),
            ({"a": changed}, {}),
            ({"c": a}, {}),
            ({"a": a[:, None]}, {}),
            ({"a": a}, {"x": 1}),
        ]
    }
    assert len(hashes) == 5


def test_digits_by_name() -> None:
    model = open_model("digits", ModelOptions(guidance=1.5))
    labels = model.draw_condition(0, range(4))
    assert (model.conditioning, model.guidance, model.image_shape) == ("class", 1.5, (1, 8, 8))
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 2.0)
    plain = load_model("digits").denoiser
    null = plain(x, t)
    torch.testing.assert_close(
        model.denoiser(x, t, labels), null + 1.5 * (plain(x, t, labels) - null)
    )
    assert model.extractor is not None
    assert model.data is not None
    assert model.extractor.features(model.data[:3]).shape == (3, 64)
    free = open_model("digits", ModelOptions(conditional=False))
    assert (free.conditioning, free.guidance, free.draw_condition(0, [3])) == ("none", None, None)
    torch.testing.assert_close(free.denoiser(x, t), null)
