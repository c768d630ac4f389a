"""diffusers pipelines: conditions, guidance, decoding, packing; and what is wrong with a folder is
named.
"""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from pipelines_on_disk import close, options_for

from ld3_dist.core.denoiser import Guided, NetworkDenoiser, map_condition
from ld3_dist.core.errors import InputError
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.models import ModelOptions, open_model
from ld3_dist.models.diffusers.networks import LatentDecoder

huggingface_hub = pytest.importorskip("huggingface_hub")


def test_class_unet_and_its_null_class(tmp_path: Path) -> None:
    folder = tiny.pixel(tmp_path / "model", num_class_embeds=5)
    spec = f"diffusers:{folder}"
    model = open_model(spec)
    x, t = torch.randn(3, 3, 8, 8), torch.full((3,), 0.5)
    label = torch.tensor([0, 2, 3])
    guided = open_model(spec, ModelOptions(guidance=2.0))
    assert isinstance(guided.denoiser, Guided)
    plain, null = model.denoiser(x, t, label), model.denoiser(x, t, torch.full((3,), 4))
    torch.testing.assert_close(
        guided.denoiser(x, t, label), null + 2 * (plain - null), rtol=1e-4, atol=1e-4
    )
    drawn = guided.draw_condition(0, range(100))
    assert isinstance(drawn, torch.Tensor)
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    free = open_model(spec, ModelOptions(conditional=False))
    assert free.conditioning == "none"
    assert free.draw_condition(0, range(2)).tolist() == [4, 4]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="needs labels"):
        model.denoiser(x, t)


def test_conditions_belong_to_the_sample_and_negative_prompts_matter(
    folders: dict[str, Path],
) -> None:
    spec = f"diffusers:{folders['sd']}"
    model = open_model(spec, options_for("sd", folders, guidance=3.0))
    together = model.draw_condition(5, range(6))
    assert isinstance(together, dict)
    for i in range(6):
        one = open_model(spec, options_for("sd", folders)).draw_condition(5, [i])
        assert isinstance(one, dict)
        assert torch.equal(one["prompt"][0], together["prompt"][i])
    assert len({row.sum().item() for row in together["prompt"]}) > 1
    other = open_model(spec, options_for("sd", folders, guidance=3.0, negative_prompt="blurred"))
    x, t = draw_noise(0, range(6), model.denoiser.shape), torch.full((6,), 0.5)
    assert not torch.allclose(model.denoiser(x, t, together), other.denoiser(x, t, together))
    free = open_model(spec, ModelOptions(conditional=False))
    assert free.conditioning == "none"
    assert free.denoiser(x, t, free.draw_condition(0, range(6))).shape == x.shape
    with pytest.raises(ValueError, match="draw_condition"):
        free.denoiser(x, t)


def test_decoding_is_differentiable(folders: dict[str, Path]) -> None:
    model = open_model(f"diffusers:{folders['dit']}")
    x = draw_noise(0, range(2), model.denoiser.shape).requires_grad_()
    t, label = torch.full((2,), 0.3), torch.tensor([1, 2])
    (grad,) = torch.autograd.grad(
        model.denoiser.decode(model.denoiser(x, t, label)).square().sum(), x
    )
    assert torch.isfinite(grad).all()
    assert grad.abs().max() > 0


def test_latents_with_mean_and_standard_deviation() -> None:
    vae = tiny.vae(
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0], scaling_factor=0.5
    )
    z = torch.randn(1, 4, 8, 8)
    per = lambda values: torch.tensor(values)[:, None, None]
    with torch.no_grad():
        expected = vae.decode(
            z * per([1.0, 2.0, 3.0, 4.0]) / 0.5 + per([0.1, 0.2, 0.3, 0.4])
        ).sample
        close(LatentDecoder(vae)(z), expected)


def test_hashes_follow_the_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    first = open_model(f"diffusers:{folders['pixel']}")
    copy = shutil.copytree(folders["pixel"], tmp_path / "copy")
    assert open_model(f"diffusers:{copy}").hash == first.hash
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert open_model(f"diffusers:{copy}").hash != first.hash


def edit(folder: Path, part: str, **values: Any) -> None:
    file = folder / part
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_bad_input_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(spec: Path | str, **options: Any) -> str:
        with pytest.raises(InputError) as error:
            open_model(f"diffusers:{spec}", ModelOptions(**options))
        return str(error.value)

    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    prompts = str(folders["prompts"])
    assert "guidance=2.0" in attempt(folders["pixel"], guidance=2.0)
    assert "unconditional" in attempt(folders["latent"], guidance=2.0)
    assert "give prompts" in attempt(folders["sd"])
    assert f"{empty}: is empty" in attempt(folders["sd"], prompts=str(empty))
    assert "nowhere.txt" in attempt(folders["sd"], prompts="nowhere.txt")
    assert "classes" in attempt(folders["sd"], classes=prompts)
    assert "prompts" in attempt(folders["dit"], prompts=prompts)
    assert "contradicts" in attempt(folders["sd"], conditional=False, guidance=2.0)
    assert "flow models" in attempt(folders["sd"], prompts=prompts, shift=3.0)
    assert "multiples of 2" in attempt(folders["dit"], size=(15, 16))
    assert "no such folder" in attempt("/nowhere/model")
    assert "model_index.json" in attempt(tmp_path)

    folder = shutil.copytree(folders["latent"], tmp_path / "no decoder")
    index = json.loads((folder / "model_index.json").read_text())
    shutil.rmtree(folder / "vqvae")
    assert "lists 'vqvae'" in attempt(folder)
    del index["vqvae"]
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "DDIMPipeline"}))
    edit(folder, "unet/config.json", in_channels=4, out_channels=4)
    assert attempt(folder)  # weights do not fit
    latent = tiny.pixel(tmp_path / "latent only", in_channels=4, out_channels=4)
    assert "4-channel latents but no decoder" in attempt(latent)

    folder = shutil.copytree(folders["pixel"], tmp_path / "damaged")
    edit(folder, "scheduler/scheduler_config.json", prediction_type="score")
    assert "score" in attempt(folder)
    edit(
        folder,
        "model_index.json",
        _class_name="DDPMPipeline",
        scheduler=["diffusers", "ScoreSdeVeScheduler"],
    )
    edit(
        folder,
        "scheduler/scheduler_config.json",
        _class_name="ScoreSdeVeScheduler",
        prediction_type="epsilon",
    )
    assert "ScoreSdeVeScheduler" in attempt(folder)
    file = next((folder / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    assert str(folder) in attempt(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a hub at an address where nobody listens."""
    constants = huggingface_hub.constants
    for name, value in (
        ("ENDPOINT", "http://127.0.0.1:9"),
        ("HF_HUB_CACHE", str(tmp_path / "hub")),
    ):
        monkeypatch.setattr(constants, name, value)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return tmp_path / "hub"


def test_a_hub_id_without_network_is_refused_at_once(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own client would try six times per file, with longer and longer pauses."""
    attempts, connect = [], socket.socket.connect
    monkeypatch.setattr(
        socket.socket,
        "connect",
        lambda self, address: attempts.append(address) or connect(self, address),
    )
    with pytest.raises(
        InputError, match=r"nobody/nothing.*no such folder.*refused.*download it.*give the folder"
    ):
        open_model("diffusers:nobody/nothing")
    assert attempts  # else this would count nothing
    assert len(attempts) <= 2, attempts


def test_offline_mode_is_respected(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nobody/nothing.*offline mode.*download it"):
        open_model("diffusers:nobody/nothing")


def test_a_pipeline_in_the_cache_needs_no_network(hub: Path, folders: dict[str, Path]) -> None:
    """The cache as the hub's client lays it out: snapshots by commit, a name for the newest."""
    place, commit = hub / "models--nobody--something", "0" * 40
    shutil.copytree(folders["pixel"], place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    model = open_model("diffusers:nobody/something")
    assert model.hash == open_model(f"diffusers:{folders['pixel']}").hash


def test_conditions_pack(folders: dict[str, Path]) -> None:
    """K members at once give what K calls give, conditions repeated alongside."""
    model = open_model(f"diffusers:{folders['sd']}", options_for("sd", folders, guidance=2.0))
    solver, noise = make_solver("dpmpp-2"), model.denoiser.noise
    knots = torch.tensor([[1.0, 0.6, 0.2, 0.001], [1.0, 0.7, 0.3, 0.001]], dtype=torch.float64)
    x, condition = draw_noise(0, range(2), model.denoiser.shape), model.draw_condition(0, range(2))
    condition = map_condition(lambda c: c, condition)
    with torch.no_grad():
        packed = sample(
            model.denoiser, solver.tableau(noise, solver.coupled(noise, knots)), x, condition
        )
        for k in range(2):
            tableau = solver.tableau(noise, solver.coupled(noise, knots[k]))
            close(packed[k], sample(model.denoiser, tableau, x, condition))
    assert isinstance(model.denoiser, Guided)
    assert isinstance(model.denoiser.inner, NetworkDenoiser)
