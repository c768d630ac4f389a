"""Weights of a pipeline's parts: what the libraries would draw at random is refused, names of older
versions are read, and prompts that cannot be encoded end in a message.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pipelines_on_disk import options_for
from safetensors.torch import load_file, save_file
from torch import Tensor

from ld3_dist.core.errors import InputError
from ld3_dist.models import open_model

pytest.importorskip("diffusers")

PARTS = [
    ("pixel", "unet"), ("latent", "vqvae"), ("dit", "transformer"), ("dit", "vae"),
    ("sd", "text_encoder"), ("sdxl", "text_encoder_2"), ("sd3", "transformer"),
    ("flux", "text_encoder_2"),
]  # fmt: skip


def changed(
    folder: Path, to: Path, part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> Path:
    """A copy of a pipeline with other tensors in one part."""
    shutil.copytree(folder, to)
    (file,) = (to / part).glob("*.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return to


def lost(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without one tensor."""
    name = sorted(tensors)[len(tensors) // 2]
    return {key: tensor for key, tensor in tensors.items() if key != name}


def spoilt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With one number that is none."""
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[0] = float("nan")
    return tensors


@pytest.mark.parametrize(("kind", "part"), PARTS)
@pytest.mark.parametrize(("change", "said"), [(lost, "hold no"), (spoilt, "is not finite")])
def test_weights_that_are_not_whole_are_refused(
    folders: dict[str, Path], tmp_path: Path, kind: str, part: str, change: Callable, said: str
) -> None:
    (file,) = (folders[kind] / part).glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    folder = changed(folders[kind], tmp_path / "m", part, change)
    with pytest.raises(InputError) as error:
        open_model(f"diffusers:{folder}", options_for(kind, folders))
    assert f"{folder / part}: " in str(error.value)
    assert said in str(error.value)
    assert name in str(error.value)


def older(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder as files had it before transformers 5, with the positions that it counted."""
    named = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in tensors.items()}
    return named | {"text_model.embeddings.position_ids": torch.arange(77)}


def test_names_of_older_versions_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["sd"], tmp_path / "m", "text_encoder", older)
    mine, theirs = (
        open_model(f"diffusers:{place}", options_for("sd", folders))
        for place in (folder, folders["sd"])
    )
    assert mine.hash == theirs.hash
    drawn, wanted = (model.draw_condition(3, range(4)) for model in (mine, theirs))
    torch.testing.assert_close(drawn, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "value"), [("sd", [5, 6]), ("schnell", None)])
def test_prompts_that_cannot_be_encoded(
    folders: dict[str, Path], tmp_path: Path, kind: str, value: object
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(folders[kind], folder)
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": value}))
    with pytest.raises(InputError, match=r"text encoders cannot encode .* check the folders") as e:
        open_model(f"diffusers:{folder}", options_for(kind, folders)).draw_condition(0, range(2))
    assert str(folder) in str(e.value)
