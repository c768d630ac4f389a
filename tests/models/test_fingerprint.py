"""Whatever determines the samples of a user's model enters its hash, or a version is asked for."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import EDM, NoiseSchedule
from ld3_dist.models import Model, open_model

FILE = """
import numpy, torch
from ld3_dist.core.noise import EDM
{imports}

class Mine:
    noise, shape = EDM(), (2,)

    def __init__(self, path):
        {init}

    def __call__(self, x, t, condition=None):
        {call}

    def decode(self, x0):
        return x0

{after}

def build(options):
    return {returned}
"""

PATH = '"{folder}/w.npy"'
LINEAR = "return x @ torch.as_tensor({weights}).to(x) / (1 + t[:, None])"
VARIANTS: dict[str, dict[str, str]] = {
    "an array in an attribute": {
        "init": f"self.w = numpy.load({PATH})",
        "call": LINEAR.format(weights="self.w"),
    },
    "a tensor deep inside": {
        "init": f'self.parts = [{{"a": (1, torch.as_tensor(numpy.load({PATH})))}}]',
        "call": LINEAR.format(weights='self.parts[0]["a"][1]'),
    },
    "a global": {
        "init": "pass",
        "call": LINEAR.format(weights="WEIGHTS"),
        "after": f"WEIGHTS = numpy.load({PATH})",
    },
    "a global of a helper function": {
        "init": "pass",
        "call": LINEAR.format(weights="weights()"),
        "after": f"WEIGHTS = numpy.load({PATH})\ndef weights():\n    return WEIGHTS",
    },
    "a closure": {
        "init": f"w = numpy.load({PATH}); self.net = lambda x: x @ torch.as_tensor(w).to(x)",
        "call": "return self.net(x) / (1 + t[:, None])",
    },
    "a global of a neighbour": {
        "imports": "import the_neighbour",
        "init": "pass",
        "call": LINEAR.format(weights="the_neighbour.WEIGHTS"),
    },
    "an unregistered module": {
        "init": "self.net = torch.nn.Linear(2, 2); "
        f"self.net.weight.data = torch.as_tensor(numpy.load({PATH})).float()",
        "call": "return self.net(x) / (1 + t[:, None])",
    },
}


def write(folder: Path, parts: dict[str, str], weights: numpy.ndarray) -> str:
    """A user's file with weights beside it, and its name as a model's."""
    filled = {"imports": "", "after": "", "returned": "Mine(None)", **parts}
    text = FILE
    for key, value in filled.items():
        text = text.replace("{" + key + "}", value)
    text = text.replace("{folder}", str(folder))
    (folder / "mine.py").write_text(text)
    numpy.save(folder / "w.npy", weights)
    (folder / "the_neighbour.py").write_text(
        f'import numpy\nWEIGHTS = numpy.load("{folder}/w.npy")\n'
    )
    return f"python:{folder / 'mine.py'}:build"


def forget(folder: Path) -> None:
    """Forget the modules of a folder, as a new process would."""
    from ld3_dist.core import user_code

    for name, module in list(sys.modules.items()):
        if str(folder) in str(getattr(module, "__file__", "")):
            del sys.modules[name]
    user_code._modules.clear()
    sys.path[:] = [path for path in sys.path if path != str(folder)]


@pytest.mark.parametrize("name", VARIANTS)
def test_other_weights_are_another_model(name: str, tmp_path: Path) -> None:
    weights = numpy.eye(2) + 0.1
    spec = write(tmp_path, VARIANTS[name], weights)
    first = open_model(spec).hash
    forget(tmp_path)
    assert open_model(spec).hash == first  # the same in another process
    forget(tmp_path)
    numpy.save(tmp_path / "w.npy", weights + 0.01)
    assert open_model(spec).hash != first
    forget(tmp_path)


def test_the_folder_of_a_user_s_file_does_not_count(tmp_path: Path) -> None:
    """A class of the file itself: its module is named after the path. Rows must not be."""
    spec = "python:{}/mine.py:build"
    network = """
import torch
from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.noise import EDM

class Net(torch.nn.Module):
    def forward(self, x, time, condition=None):
        return scaled(x)

def scaled(x):
    return 0.5 * x

def build(options):
    return NetworkDenoiser(Net(), EDM(), (2,))
"""
    found = []
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(network)
        found.append(open_model(spec.format(tmp_path / name)).hash)
        forget(tmp_path)
    assert found[0] == found[1]


def test_a_neighbour_s_code_is_part_of_the_hash(tmp_path: Path) -> None:
    spec = write(tmp_path, VARIANTS["a global of a neighbour"], numpy.eye(2))
    first = open_model(spec).hash
    forget(tmp_path)
    with open(tmp_path / "the_neighbour.py", "a") as file:
        file.write("\nOTHER = 1\n")
    assert open_model(spec).hash != first
    forget(tmp_path)


def test_a_noise_schedule_of_a_user_s_own_can_be_read(tmp_path: Path) -> None:
    """Its class derives from an abstract one, in which Python keeps what cannot be read."""
    text = (Path(__file__).parents[1] / "extending/files/stretched_noise.py").read_text()
    (tmp_path / "own_noise.py").write_text(text)
    variant = VARIANTS["an array in an attribute"] | {"imports": "from own_noise import Stretched"}
    variant["after"] = "Mine.noise = Stretched()"
    spec = write(tmp_path, variant, numpy.eye(2))
    first = open_model(spec).hash
    forget(tmp_path)
    assert open_model(spec).hash == first
    forget(tmp_path)
    (tmp_path / "own_noise.py").write_text(text.replace("p: float = 1.5", "p: float = 1.6"))
    assert open_model(spec).hash != first
    forget(tmp_path)


class Foreign:
    noise: NoiseSchedule = EDM()
    shape = (2,)

    def __init__(self) -> None:
        self.session = types.SimpleNamespace(handle=iter(numpy.nditer(numpy.eye(2))))

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return x / (1 + t[:, None])

    def decode(self, x0: Tensor) -> Tensor:
        return x0


def test_what_cannot_be_read_needs_a_version() -> None:
    with pytest.raises(InputError, match=r"session\.handle.*version='1'"):
        Model(Foreign())
    first, second = (Model(Foreign(), version=version).hash for version in ("1", "2"))
    assert first != second
    assert Model(Foreign(), version="1").hash == first


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.scale = nn.Linear(4, 4), scale
        self.loose = torch.ones(4)  # a tensor that is neither parameter nor buffer

    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return self.scale * self.inner(x) * self.loose * (1 + time[:, None])


def wrapped(net: nn.Module, **more: Any) -> NetworkDenoiser:
    return NetworkDenoiser(net, **{"noise": EDM(), "shape": (4,), "prediction": "edm", **more})


def test_a_network_in_python_is_known_by_all_that_shapes_its_samples() -> None:
    base = Model(wrapped(Net())).hash
    assert Model(wrapped(Net())).hash == base
    assert Model(wrapped(Net().train())).hash == base
    changed, loose = Net(), Net()
    changed.inner.weight.data[0, 0] += 1e-3
    loose.loose[1] = 2
    others = [
        wrapped(changed),
        wrapped(loose),
        wrapped(Net(2.0)),
        wrapped(Net(), noise=EDM(t_max=40.0)),
        wrapped(Net(), sigma_data=0.6),
        wrapped(Net(), prediction="data"),
        wrapped(Net(), network_time=lambda t: 2 * t),
        wrapped(Net(), network_time=lambda t: 3 * t),
    ]
    assert len({base, *(Model(other).hash for other in others)}) == 1 + len(others)


def test_a_model_of_a_denoiser_alone() -> None:
    class Decoding(NetworkDenoiser):
        def decode(self, x0: Tensor) -> Tensor:
            return x0.view(-1, 1, 2, 2).repeat(1, 3, 1, 1)

    model = Model(Decoding(Net(), EDM(), (4,), "edm"))
    assert (model.id, model.conditioning, model.guidance) == ("Decoding", "none", None)
    assert (model.shape, model.image_shape, model.latent) == ((4,), (3, 2, 2), True)
    assert model.noise is model.denoiser.noise
    assert model.draw_condition(0, [1]) is None
    assert len(model.hash) == 64
    assert model.probed().time_gradient


def test_what_is_no_denoiser_is_said() -> None:
    with pytest.raises(InputError, match=r"Linear, which lacks noise, shape, decode"):
        Model(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="noise is str"):
        Model(wrapped(Net(), noise="edm"))
    with pytest.raises(InputError, match="decode fails on zeros"):
        Model(wrapped(Net(), decoder=lambda x: x @ torch.ones(3)))
    with pytest.raises(InputError, match=r"its data are \(5, 3\)"):
        Model(wrapped(Net()), data=torch.zeros(5, 3))
