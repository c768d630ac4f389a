"""`ld3-dist learn`: what would never end, or be lost at the end, is refused before any work."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ld3_dist import learn, load_model
from ld3_dist.cli import app as cli
from ld3_dist.core.errors import InputError
from ld3_dist.core.learning.config import LearnConfig
from ld3_dist.models import open_model

pytestmark = pytest.mark.timeout(60)

BASE = ["--nfe", "3", "--model", "analytic:mixture-2d", "--out", "my.json", "--pairs", "8"]

MODELS = """
import torch
from ld3_dist.core.noise import EDM
from ld3_dist.models.analytic.mixture import mixture_2d


class Odd:
    def __init__(self):
        self.inner = mixture_2d(EDM())
        self.noise, self.shape, self.decode = self.inner.noise, self.inner.shape, self.inner.decode
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, x, t, condition=None):
        return self.inner(x, t)


class Rare(Odd):  # a tenth of the numbers, so that two calls on few of them may agree
    def __call__(self, x, t, condition=None):
        kept = torch.rand(x.shape, generator=self.generator) > 0.1
        return self.inner(x, t) * kept


class Full(Odd):
    def __call__(self, x, t, condition=None):
        raise MemoryError


def rare(options):
    return Rare()


def full(options):
    return Full()


def leaves(options):
    raise SystemExit(0)
"""


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--nfe", "1000000000"], ["nfe = 1000000000", "at most 1000"]),
        (["--nfe", "1001"], ["nfe = 1001", "at most 1000"]),
        (["--nfe", "4-1001"], ["nfe = 1001", "at most 1000", "--nfe 4-1001"]),
        (["--nfe", "10-4"], ["--nfe '10-4'", "4-10"]),
        (["--nfe", "4,x"], ["--nfe '4,x'", "4-10 or 4,6,8"]),
        (["--seed", "-1"], ["learn.seed = -1", "at least 0"]),
        (["--seed", str(2**63)], [f"learn.seed = {2**63}", f"below {2**63}"]),
        (["--pairs", "1000000000000"], ["--pairs 1000000000000", "2 to 1000000"]),
        (["--epochs", "100000000000000"], ["learn.epochs = 100000000000000", "below 10000000"]),
        (["--teacher", "unipc-3/1000000000/karras"], ["--teacher", "at most 1000"]),
        (["--teacher", f"unipc-3/{'9' * 5000}/karras"], ["--teacher", "at most 1000"]),
        (["--teacher", "unipc-3/0/karras"], ["--teacher", "solver/NFE/grid"]),
        (["--set", f"batch={'9' * 5000}"], ["--set batch", "5000 characters"]),
        (["--set", "lr=0"], ["learn.lr = 0", "above 0"]),
        (["--set", "seed=3"], ["--set seed=3", "--seed"]),
        (["--set", "lr=0.1", "--set", "lr=0.2"], ["--set lr=0.2", "given twice"]),
        (["--gamma", "0.1", "--set", "gamma=0"], ["--set gamma=0", "given twice"]),
        (["--out", ""], ["--out", "name a file"]),
        (["--model", "python:odd.py:rare"], ["odd.py:rare", "two calls on the same samples"]),
        (["--model", "python:odd.py:leaves"], ["odd.py:leaves", "the factory fails", "SystemExit"]),
    ],
)
def test_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    given: list[str], parts: list[str],
) -> None:  # fmt: skip
    code, out, err = run(tmp_path, monkeypatch, capsys, given)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["odd.py"]


def test_a_network_without_memory_ends_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(tmp_path, monkeypatch, capsys, ["--model", "python:odd.py:full"])
    assert code == 1
    assert "not enough memory" in err
    assert os.listdir(tmp_path) == ["odd.py"]


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    given: list[str],
) -> tuple[object, str, str]:  # fmt: skip
    """Exit code, output and errors of `learn` in a folder with models; the last of two counts."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (folder / "odd.py").write_text(MODELS)
    monkeypatch.setattr(sys, "argv", ["ld3-dist", "learn", *BASE, *given])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_python_has_the_same_bounds() -> None:
    model = load_model("analytic:mixture-2d")
    with pytest.raises(InputError, match="nfe = 10000: must be at most 1000"):
        learn(model, "ddim", nfe=10_000)
    wrong: list[dict[str, Any]] = [
        {"seed": -1}, {"epochs": 10**8}, {"batch": 10**400}, {"lr": float("inf")},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(InputError, match=f"learn.{next(iter(settings))} = "):
            LearnConfig(**settings)
    assert LearnConfig(seed=2**63 - 1).seed == 2**63 - 1


def test_rare_noise_is_found_whatever_the_generator_does(tmp_path: Path) -> None:
    for seed in range(8):
        file = tmp_path / f"odd{seed}.py"
        file.write_text(MODELS.replace("manual_seed(3)", f"manual_seed({seed})"))
        with pytest.raises(InputError, match="two calls on the same samples"):
            open_model(f"python:{file}:rare")
