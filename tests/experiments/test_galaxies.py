"""The worked example of a model of one's own: its reader, its network, its noise, its distances.

Files are made here. What needs the published weights runs where their wheel has been fetched.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "experiments/galaxies"
sys.path.append(str(FOLDER))

import eqx_files  # noqa: E402
import galaxies  # noqa: E402
import galaxy_distances  # noqa: E402
import galaxy_figure  # noqa: E402
import galaxy_wheel  # noqa: E402
from galaxy_noise import OrnsteinUhlenbeck  # noqa: E402
from galaxy_starts import LAST, leap  # noqa: E402
from mixer import BLOCKS, HIDDEN, PATCH, Mixer  # noqa: E402

import ld3_dist as ld3  # noqa: E402
from ld3_dist.core.distance import check_distance, make_distance  # noqa: E402
from ld3_dist.core.errors import InputError  # noqa: E402
from ld3_dist.core.grid import Grid  # noqa: E402
from ld3_dist.experiment import load_experiment  # noqa: E402
from ld3_dist.models import ModelOptions  # noqa: E402
from ld3_dist.schedule.noise import check_writable, noise_from_dict, noise_to_dict  # noqa: E402

SIDE = 12
fetched = pytest.mark.skipif(
    not galaxy_wheel.WHEEL.is_file(),
    reason=f"{galaxy_wheel.NAME} is not there; fetch it with experiments/galaxies/galaxy_wheel.py",
)


def random_network(side: int = SIDE) -> Mixer:
    torch.manual_seed(0)
    net = Mixer(side, t_1=7.0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.requires_grad_(False)


def records_of(net: Mixer) -> list[np.ndarray]:
    """The network as JAX would save it: flipped kernel, biases with dimensions for pixels, time."""
    kernel = net.conv_out.weight.numpy().transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    records = [net.conv_in.weight.numpy(), net.conv_in.bias.numpy().reshape(-1, 1, 1)]
    records += [kernel, net.conv_out.bias.numpy().reshape(-1, 1, 1)]
    for block in net.blocks:
        for mlp in (block.patch_mlp, block.hidden_mlp):
            for layer in (mlp.into, mlp.out):
                records += [layer.weight.numpy(), layer.bias.numpy()]
        for norm in (block.norm_1, block.norm_2):
            records += [norm.weight.numpy(), norm.bias.numpy()]
    return [*records, net.norm.weight.numpy(), net.norm.bias.numpy(), np.float64(net.t_1)]


def saved(records: list[Any], pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    for record in records:
        np.save(stream, record, allow_pickle=pickled)
    return stream.getvalue()


def read(data: bytes) -> Mixer:
    return eqx_files.read_network(data, "the.eqx", SIDE)


def test_a_file_is_read_as_it_was_written() -> None:
    net = random_network()
    assert len(records_of(net)) == 55
    found = read(saved(records_of(net)))
    x, t = torch.randn(3, 1, SIDE, SIDE), torch.tensor([0.01, 1.0, 9.0])
    assert torch.equal(found(x, t), net(x, t))
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_the_kernel_on_the_way_out_is_flipped() -> None:
    """JAX convolves the upsampled image with its kernel K: each square is sum_c K flipped * y_c."""
    net = random_network()
    kernel = torch.from_numpy(records_of(net)[2].copy())  # [1, 64, 4, 4]
    y = torch.randn(2, HIDDEN, 3, 3)
    side = 3 * PATCH + PATCH - 1  # with PATCH - 1 zeros between and around
    spread = torch.zeros(2, HIDDEN, side, side)
    spread[:, :, PATCH - 1 :: PATCH, PATCH - 1 :: PATCH] = y
    expected = torch.nn.functional.conv2d(spread, kernel) + net.conv_out.bias
    found = read(saved(records_of(net))).conv_out(y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_columns", [False, True])
def test_a_record_in_the_order_of_columns(by_columns: bool) -> None:
    net = random_network()
    records = records_of(net)
    records[4] = np.asarray(records[4], order="F" if by_columns else "C")
    weight = read(saved(records)).blocks[0].patch_mlp.into.weight
    assert torch.equal(weight, net.blocks[0].patch_mlp.into.weight)


def other(index: int, value: Any) -> bytes:
    records = records_of(random_network())
    records[index] = value
    return saved(records)


WHOLE = saved(records_of(random_network()))
FIRST_40 = len(saved(records_of(random_network())[:40]))
BAD = {
    "a record too many": (WHOLE + saved([np.zeros(3)]), r"bytes follow record 54.*too many"),
    "a record too few": (saved(records_of(random_network())[:54]), r"record 54 \(t_1\) is missing"),
    "cut between two": (WHOLE[:FIRST_40], r"record 40 \(blocks\.3\.\w+\.\w+.*\) is missing"),
    "cut in the numbers": (WHOLE[: FIRST_40 - 8], r"record 39 \(.*\) is truncated: \d+ bytes of"),
    "cut in a header": (WHOLE[: FIRST_40 + 30], r"record 40 \(.*\) is damaged"),
    "nothing": (b"", r"record 0 \(conv_in\.weight\) is missing"),
    "another shape": (
        other(4, np.zeros((512, 10), "f4")),
        r"record 4 \(blocks\.0\.patch_mlp\.into\.weight\) is float32 \[512, 10\], expected float32 "
        r"\[512, 9\]",
    ),
    "another dtype": (other(1, np.zeros((64, 1, 1))), r"record 1 \(conv_in\.bias\) is float64"),
    "a time in single precision": (other(54, np.float32(10)), r"record 54 \(t_1\) is float32"),
    "not finite": (other(3, np.full((1, 1, 1), np.nan, "f4")), r"record 3 .* not finite"),
    "a time of zero": (other(54, np.float64(0)), r"t_1 = 0\.0 must be positive"),
    "an archive": (b"PK\x03\x04" + WHOLE, r"record 0 \(conv_in\.weight\) is damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_name_the_record(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(InputError, match=rf"^the\.eqx: .*{message}"):
        read(data)


class Ran(Exception):
    pass


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return _run, ()


def _run() -> None:
    raise Ran


def test_nothing_is_unpickled() -> None:
    objects = np.array([Dangerous()], dtype=object)
    data = saved([objects], pickled=True)
    with pytest.raises(Ran):
        np.load(io.BytesIO(data), allow_pickle=True)
    with pytest.raises(InputError, match=r"record 0 \(conv_in\.weight\) is object \[1\]"):
        read(data)


def test_a_header_that_asks_for_all_memory_is_refused_before_it_is_given() -> None:
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**15, 2, 4, 4)}
    np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(InputError, match=r"record 0 \(conv_in\.weight\) is float32 \[1000000000"):
        read(stream.getvalue())


# --- the wheel ------------------------------------------------------------------------------------


def wheel_of(folder: Path, data: bytes) -> Path:
    file = folder / galaxy_wheel.NAME
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("galaxygrad/eqx_hsc_ScoreNet32.eqx", data)
    return file


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, b"anything")
    with pytest.raises(InputError, match=r"SHA-256 is [0-9a-f]{64}, expected 56fd8f.*remove it"):
        galaxy_wheel.member("galaxygrad/eqx_hsc_ScoreNet32.eqx", wheel)
    missing = tmp_path / "none.whl"
    with pytest.raises(InputError, match=r"file not found; fetch it with: python experiments/"):
        galaxy_wheel.checked(missing)


def test_what_pip_brings_is_checked_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def pip(command: list[str], **_: Any) -> Any:
        asked.append(command)
        wheel_of(Path(command[command.index("--dest") + 1]), b"another release")
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    target = tmp_path / "cache" / galaxy_wheel.NAME
    with pytest.raises(InputError, match="expected 56fd8f"):
        galaxy_wheel.fetch(target)
    assert "galaxygrad==0.2.1" in asked[0]
    assert "--no-deps" in asked[0]
    assert list(target.parent.iterdir()) == []
    found = galaxy_wheel.sha256_of(wheel_of(tmp_path, b"another release"))
    monkeypatch.setattr(galaxy_wheel, "SHA256", found)
    assert galaxy_wheel.fetch(target) == target
    assert galaxy_wheel.member("galaxygrad/eqx_hsc_ScoreNet32.eqx", target) == b"another release"
    assert len(asked) == 2
    galaxy_wheel.fetch(target)
    assert len(asked) == 2  # it is there


def test_a_download_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="ERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match=r"pip download galaxygrad==0\.2\.1 failed .*no network"):
        galaxy_wheel.fetch(tmp_path / "w.whl")


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 12])
def test_samples_keep_their_shape_and_do_not_mix(side: int) -> None:
    net, x, t = random_network(side), torch.randn(3, 1, side, side), torch.tensor([0.1, 1.0, 5.0])
    whole = net(x, t)
    assert whole.shape == x.shape
    torch.testing.assert_close(whole[1:2], net(x[1:2], t[1:2]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(net(x, t), net(x, t + 1), atol=1e-3)


def test_squares_that_change_places_change_them_in_the_output() -> None:
    """Weights that act along the squares are permuted with the squares of the image."""
    net, moved = random_network(), random_network()
    order = torch.randperm((SIDE // PATCH) ** 2, generator=torch.Generator().manual_seed(3))
    for block, other_block in zip(net.blocks, moved.blocks, strict=True):
        into, out = block.patch_mlp.into, block.patch_mlp.out
        other_block.patch_mlp.into.weight.copy_(into.weight[:, order])
        other_block.patch_mlp.out.weight.copy_(out.weight[order])
        other_block.patch_mlp.out.bias.copy_(out.bias[order])
        for name in ("weight", "bias"):
            getattr(other_block.norm_1, name).copy_(getattr(block.norm_1, name)[:, order])
            getattr(other_block.norm_2, name).copy_(getattr(block.norm_2, name)[order])
    for name in ("weight", "bias"):
        getattr(moved.norm, name).copy_(getattr(net.norm, name)[:, order])
    assert len(net.blocks) == BLOCKS

    def shuffled(x: Tensor) -> Tensor:
        squares = torch.nn.functional.unfold(x, PATCH, stride=PATCH)[:, :, order]
        return torch.nn.functional.fold(squares, SIDE, PATCH, stride=PATCH)

    x, t = torch.randn(2, 1, SIDE, SIDE), torch.tensor([0.3, 3.0])
    torch.testing.assert_close(moved(shuffled(x), t), shuffled(net(x, t)), rtol=1e-4, atol=1e-4)


# --- the noise schedule, the images, the grid -----------------------------------------------------


def test_the_noise_schedule_is_its_own_inverse_and_can_be_kept() -> None:
    noise = OrnsteinUhlenbeck()
    t = torch.logspace(-3, 1, 60, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(noise.inverse(noise.lam(t)), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(noise.alpha(t), (-t / 2).exp())
    torch.testing.assert_close(noise.sigma(t) ** 2, 1 - (-t).exp())
    for level, rate in ((noise.alpha, noise.d_alpha), (noise.sigma, noise.d_sigma)):
        (found,) = torch.autograd.grad(level(t).sum(), t)
        torch.testing.assert_close(found, rate(t))
    check_writable(noise)
    kept = noise_from_dict(json.loads(json.dumps(noise_to_dict(noise))))
    assert kept == noise
    assert noise_to_dict(noise)["name"] == "ornstein-uhlenbeck"  # no path of this machine


def test_images_can_be_turned_back_into_samples() -> None:
    x = torch.linspace(-1, 12, 200).view(1, 1, 10, 20)
    image = galaxies.to_image(x)
    torch.testing.assert_close(galaxies.from_image(image), x, rtol=1e-4, atol=1e-5)
    ends = torch.tensor([galaxies.BLACK, galaxies.WHITE])
    torch.testing.assert_close(galaxies.to_image(ends), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("name", ["pixel_l2", "asinh_l2"])
def test_distances_are_of_pixels_and_of_stretched_pixels(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (8 * torch.rand(3, 1, 6, 6, generator=generator) - 0.2 for _ in range(2))
    stretch = (lambda x: (x / 0.25).asinh()) if name == "asinh_l2" else (lambda x: x)
    expected = (stretch(a) - stretch(b)).square().mean((1, 2, 3))
    distance = make_distance(f"python:{FOLDER}/galaxy_distances.py:{name}")
    images = galaxies.to_image(a), galaxies.to_image(b)
    torch.testing.assert_close(distance(*images), expected, rtol=1e-4, atol=1e-5)
    assert distance(images[0], images[0]).tolist() == [0, 0, 0]
    check_distance(distance, (1, 6, 6))
    assert pytest.approx(math.asinh(32) + math.asinh(1)) == galaxy_distances.RANGE


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_grid_walks_and_leaps(steps: int) -> None:
    noise = OrnsteinUhlenbeck()
    knots = leap(SimpleNamespace(noise=noise, steps=steps))  # type: ignore[arg-type]
    assert knots.shape == (steps + 1,)
    Grid(knots, knots[:-1]).within(noise)
    assert (float(knots[0]), float(knots[-1])) == (10.0, 1e-3)
    if steps > 1:
        assert float(knots[-2]) == pytest.approx(LAST)
        lam = noise.lam(knots[:-1]).diff()
        torch.testing.assert_close(lam, lam.mean().expand_as(lam))


def test_the_experiment_names_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    experiment = load_experiment(FOLDER / "galaxies.yaml")
    assert [model.label for model in experiment.models] == ["hsc32", "hsc64", "quasar72"]
    for model in experiment.models:
        assert callable(getattr(galaxies, model.model.rpartition(":")[2]))


# --- the published weights ------------------------------------------------------------------------


def pattern(side: int) -> Tensor:
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return ((5 * x).sin() + (3 * y).cos() * x)[None, None]


ORIGINAL = {
    "hsc32": (54.087803, (-2.69422, 0.120395, 4.304275)),
    "hsc64": (96.599770, (-3.105329, 0.045506, 4.269862)),
    "quasar72": (160.688034, (-4.994309, -0.378217, 4.878362)),
}
"""Norm and three pixels of the score of `pattern` at t = 0.5, by the original in JAX."""


@fetched
@pytest.mark.parametrize("name", ORIGINAL)
def test_the_score_is_that_of_the_original(name: str) -> None:
    model = getattr(galaxies, name)(ModelOptions())
    side = model.shape[-1]
    norm, pixels = ORIGINAL[name]
    with torch.no_grad():
        score = model.denoiser.net.score(pattern(side), torch.tensor([0.5]))[0, 0]
    assert float(score.norm()) == pytest.approx(norm, rel=1e-4)
    found = [float(score[0, 0]), float(score[side // 2, side // 2]), float(score[3, side - 2])]
    assert found == pytest.approx(pixels, rel=1e-4, abs=1e-4)


@fetched
def test_samples_are_galaxies_on_a_dark_sky() -> None:
    model = ld3.load_model(f"python:{FOLDER}/galaxies.py:hsc32")
    assert model.time_gradient
    pairs = ld3.teach(model, n=8, teacher="unipc-3/12/log_snr")
    x = galaxies.from_image(pairs.target)
    border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], -1)
    core = x[..., 12:20, 12:20]
    assert float(border.median().abs()) < 0.1
    assert bool((core.amax((1, 2, 3)) > 2).all())
    assert float((core > 1).float().mean()) > 5 * float((border > 1).float().mean())


@fetched
def test_a_schedule_is_learned_kept_and_read_back(tmp_path: Path) -> None:
    model = ld3.load_model(f"python:{FOLDER}/galaxies.py:hsc32")
    pairs = ld3.teach(model, n=8, teacher="ddim/6/quadratic")
    learned = ld3.learn(model, "ddim", 2, pairs, starts=["quadratic"], epochs=1, baselines=[])
    learned.save(tmp_path / "mine.json")
    kept = ld3.load_schedule(tmp_path / "mine.json")
    assert kept.noise["name"] == "ornstein-uhlenbeck"
    assert kept.noise_schedule == model.noise
    assert torch.equal(kept.sample(model, n=2), learned.sample(model, n=2))


# --- the page -------------------------------------------------------------------------------------


def test_the_table_of_the_page_is_that_of_the_results() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = galaxy_figure.table(ld3.load_results(FOLDER.parents[1] / "results/galaxies"))
    assert len(lines) == 2 + 9
    for line in lines:
        assert line in page, line
