"""Noise schedules in schedule files: a user's own goes the whole way, and no file runs code."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import warm_python
from torch import Tensor

from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import discretize
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPLinear, noise_schedules
from ld3_dist.core.solver import make_solver
from ld3_dist.core.user_code import import_name
from ld3_dist.schedule.export import export_sigmas
from ld3_dist.schedule.file import Schedule, load_schedule, parse_schedule
from ld3_dist.schedule.noise import (
    BUILT_IN,
    check_same_noise,
    check_writable,
    noise_from_dict,
    noise_to_dict,
    same_noise,
)

OWN = '''
from dataclasses import dataclass
import torch
from ld3_dist.core.noise import NoiseSchedule

@dataclass(frozen=True)
class Power(NoiseSchedule):
    """alpha = 1, sigma = t^p."""

    p: float = 2.0
    levels: tuple = (1.0, 2.0)
    t_min: float = 0.05
    t_max: float = 8.0
    name: str = "power"

    @property
    def prior_scale(self):
        return self.t_max**self.p

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return t**self.p

    def d_alpha(self, t):
        return torch.zeros_like(t)

    def d_sigma(self, t):
        return self.p * t ** (self.p - 1)

    def inverse(self, lam):
        return torch.exp(-lam / self.p)
'''


def schedule_on(noise: NoiseSchedule, **more: Any) -> Schedule:
    solver = make_solver("ddim")
    knots = discretize(noise, 4, "log_snr")
    table = solver.tableau(noise, solver.coupled(noise, knots, 4))
    values: dict[str, Any] = {
        "knots": knots.tolist(), "evals": table.evals.tolist(), "state": table.state.tolist(),
        "outputs": table.outputs.tolist(), "noise": noise_to_dict(noise),
        "prior_scale": noise.prior_scale, "solver": "ddim", "nfe": 4, "model": "mine",
    }  # fmt: skip
    return Schedule(**{**values, **more})


@pytest.fixture
def power(tmp_path: Path) -> Any:
    (tmp_path / "own.py").write_text(OWN)
    return import_name(f"python:{tmp_path / 'own.py'}:Power", "noise schedule")


def test_one_of_a_users_file_goes_the_whole_way(power: Any, tmp_path: Path) -> None:
    noise = power(p=1.5)
    check_writable(noise)
    written = schedule_on(noise)
    assert written.noise["name"] == f"python:{tmp_path / 'own.py'}:Power"
    assert written.noise["sigma"] == pytest.approx([t**1.5 for t in written.knots], rel=1e-12)
    written.save(tmp_path / "s.json")
    again = load_schedule(tmp_path / "s.json")
    assert again.to_json() == written.to_json()
    assert isinstance(again.noise_schedule, power)
    assert (again.noise_schedule.t_max, again.noise["p"]) == (8.0, 1.5)
    assert same_noise(again, noise)
    for other in (power(p=1.6), power(p=1.5, t_max=9.0), EDM(t_min=0.05, t_max=8.0)):
        assert not same_noise(again, other)
        assert not same_noise(schedule_on(other), noise)
    with pytest.raises(InputError, match=r"another noise schedule .*p 1\.5.* than that of m \("):
        check_same_noise(again, power(), "m")


def test_the_same_class_under_another_path_is_the_same(power: Any, tmp_path: Path) -> None:
    written = schedule_on(power())
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "own.py"
    moved.write_text(OWN)
    assert same_noise(written, import_name(f"python:{moved}:Power", "noise schedule")())
    moved.write_text(OWN.replace("t**self.p", "t**self.p + 1e-3"))  # the code says something else
    assert not same_noise(written, import_name(f"python:{moved}:Power", "noise schedule")())


def test_a_file_that_was_edited_and_imported_again(power: Any, tmp_path: Path) -> None:
    """The old class is still in memory; the file's name leads to the new one."""
    written = schedule_on(power())
    (tmp_path / "own.py").write_text(OWN.replace("p: float = 2.0", "p: float = 1.0"))
    new = import_name(f"python:{tmp_path / 'own.py'}:Power", "noise schedule")
    assert new is not power
    assert type(parse_schedule(written.to_json()).noise_schedule) is new
    with pytest.raises(InputError, match="Power cannot be written"):
        noise_to_dict(power())


def test_another_process_samples_and_exports_it_without_the_class(
    power: Any, tmp_path: Path
) -> None:
    written = schedule_on(power())
    written.save(tmp_path / "s.json")
    (tmp_path / "own.py").write_text("raise SystemExit('executed')")
    code = (
        "import json, sys, torch\n"
        "from ld3_dist.schedule.file import load_schedule\n"
        "from ld3_dist.schedule.export import export_sigmas\n"
        "s = load_schedule(sys.argv[1])\n"
        "try:\n    s.noise_schedule\nexcept ValueError as error:\n    reason = str(error)\n"
        "print(json.dumps([export_sigmas(s), s.tableau.state.tolist(), reason]))"
    )
    done = warm_python.run(["-c", code, str(tmp_path / "s.json")])
    assert done.returncode == 0, done.stderr
    sigmas, state, reason = json.loads(done.stdout)
    assert sigmas == pytest.approx([t**2 for t in written.knots], rel=1e-12)
    assert state == list(written.state)
    assert "open the model that it belongs to first" in reason


def test_a_file_does_not_choose_what_is_imported_or_called(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    body = json.loads(schedule_on(EDM()).to_json())
    levels = {"alpha": [1.0] * 5, "sigma": [5.0, 4.0, 3.0, 2.0, 1.0]}
    for name in (
        f"python:{tmp_path / 'evil.py'}:Thing",
        "python:os:system",
        "python:antigravity:x",
    ):
        body["noise"] = {"name": name, "command": "exit 3", **levels}
        loaded = parse_schedule(json.dumps(body))
        with pytest.raises(InputError, match="not loaded here"):
            _ = loaded.noise_schedule
    assert "antigravity" not in sys.modules


def test_a_registered_one_is_known_by_its_name() -> None:
    @noise_schedules.register("test-shifted")
    @dataclass(frozen=True)
    class Shifted(EDM):
        by: int = 3

    assert noise_to_dict(Shifted(by=4))["name"] == "test-shifted"
    again = noise_from_dict({"name": "test-shifted", "by": 4})
    assert isinstance(again, Shifted)
    assert again.by == 4
    assert export_sigmas(schedule_on(Shifted())) == pytest.approx(list(schedule_on(EDM()).knots))


def test_what_cannot_be_written_is_refused_at_opening(power: Any) -> None:
    @dataclass(frozen=True)
    class Inside(EDM):
        pass

    class Bare(EDM):  # no dataclass of its own, but it inherits one: it is written as what it is
        pass

    class NoFields(NoiseSchedule):
        t_min, t_max, name = 0.1, 1.0, "none"

        def alpha(self, t: Tensor) -> Tensor:
            return 1 - t

        sigma = d_alpha = d_sigma = alpha

        def inverse(self, lam: Tensor) -> Tensor:
            return lam

    for noise, say in (
        (Inside(), "Inside cannot be written.*inside a function; move the class to a file"),
        (Bare(), "Bare cannot be written"),
        (NoFields(), "is no dataclass; decorate"),
        (power(levels=(1.0, object())), "its field levels = <object"),
        (power(levels=float("nan")), "its field levels = nan is neither"),
    ):
        with pytest.raises(InputError, match=say):
            check_writable(noise)


@pytest.mark.parametrize(
    ("before", "after", "say"),
    [
        ("return t**self.p", "return 9.0 - t", "lam must decrease"),
        ("return t**self.p", "return t * float('nan')", "lam is not finite"),
        ("-lam / self.p", "-lam / 3", r"inverse\(lam\(t\)\) differs from t by up to"),
        ("t**self.p\n\n    def d", "t**(self.p + vars(self).get('hidden', 0))\n\n    def d", ""),
    ],
)  # fmt: skip
def test_formulas_are_compared_with_one_another(
    tmp_path: Path, before: str, after: str, say: str
) -> None:
    (tmp_path / "own.py").write_text(OWN.replace(before, after))
    noise = import_name(f"python:{tmp_path / 'own.py'}:Power", "noise schedule")()
    if not say:
        object.__setattr__(noise, "hidden", 0.5)  # what determines it is in no field
        say = "read back from its fields it gives other values"
    with pytest.raises(InputError, match=say):
        check_writable(noise)


def test_those_of_the_package() -> None:
    ours = {n for n in noise_schedules if noise_schedules.get(n).__module__.startswith("ld3_dist.")}
    assert ours == set(BUILT_IN)
    for noise in (EDM(), VPLinear(), FlowMatching()):
        check_writable(noise)
        assert same_noise(schedule_on(noise), noise)
        assert "alpha" not in schedule_on(noise).noise
    assert not same_noise(schedule_on(EDM()), EDM(t_max=70.0))
    assert not same_noise(schedule_on(VPLinear()), FlowMatching())
    with pytest.raises(
        InputError, match="parameter of noise schedule 'edm': 't_mxa': did you mean"
    ):
        noise_from_dict({"name": "edm", "t_mxa": 3})
    assert torch.equal(schedule_on(EDM()).noise_schedule.lam(torch.ones(1)), torch.zeros(1))
