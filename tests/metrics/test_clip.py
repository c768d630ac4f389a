"""Images against prompts: a tiny random CLIP saved as the real ones are, and its own arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import clip_tokenizer, seeded
from torch import Tensor, nn

from ld3_dist.core.errors import InputError
from ld3_dist.core.features import Extractor
from ld3_dist.metrics.extractors import open_extractor
from ld3_dist.metrics.scores import Samples, score
from ld3_dist.models import Model, load_model
from ld3_dist.schedule.evaluating import prompts_of, score_columns

pytest.importorskip("transformers")
PROMPTS = ["a cat", "two dogs", "a cat", "red"]
SIDE, WIDTH = 12, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    place = tmp_path_factory.mktemp("clip") / "tiny"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2}
    text = {**sizes, "vocab_size": 190, "max_position_embeddings": 16}
    text |= {"bos_token_id": 188, "eos_token_id": 189}
    vision = {**sizes, "image_size": SIDE, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    seeded(CLIPModel, config=config).save_pretrained(place)
    clip_tokenizer(place / "words").save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("analytic:mixture-2d")


@pytest.fixture(scope="module")
def extractor(folder: Path, model: Model) -> Extractor:
    found = open_extractor(f"clip:{folder}", model)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 20, 30, generator=torch.Generator().manual_seed(2)) * 2 - 1


def theirs(folder: Path, images: Tensor) -> tuple[Tensor, float]:
    """The similarities of the library's own processor and model, and its scale."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    net: Any = CLIPModel.from_pretrained(folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    pixels = processor(list((images + 1) / 2), do_rescale=False, return_tensors="pt")
    words = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = net(
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            pixel_values=pixels["pixel_values"],
        )
    return out.logits_per_image.diagonal(), float(net.logit_scale.detach().exp())


def test_scores_are_the_librarys_own(folder: Path, extractor: Extractor, images: Tensor) -> None:
    square = images[:, :, :SIDE, :SIDE]
    logits, scale = theirs(folder, square)
    assert extractor.text is not None
    features = extractor.features(square)
    cosines = (features * extractor.text.embed(PROMPTS)).sum(-1)
    torch.testing.assert_close(cosines * scale, logits, rtol=1e-4, atol=1e-4)
    names = ["clip_score", "preference"]
    found = score_columns([features], extractor, [None], names, [PROMPTS])
    wanted = (100 * logits / scale).clamp_min(0).mean()
    assert found["metric.clip_score"] == pytest.approx(float(wanted), abs=1e-3)
    assert found["metric.preference"] == pytest.approx(float(logits.mean()), abs=1e-3)
    other = score_columns([features], extractor, [None], names, [["red", *PROMPTS[:3]]])
    assert other["metric.preference"] != pytest.approx(found["metric.preference"], abs=1e-4)


def test_a_wide_image_is_cut_at_its_centre(extractor: Extractor, images: Tensor) -> None:
    wide = images[:, :, :SIDE, : SIDE + 6]
    centre = extractor.features(wide[:, :, :, 3 : SIDE + 3])
    torch.testing.assert_close(extractor.features(wide), centre, rtol=1e-4, atol=1e-5)
    large = extractor.features(wide.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert (large - centre).abs().max() < 0.5 * (centre[0] - centre[1]).abs().max()


def test_the_aesthetic_layers_are_laions(folder: Path, model: Model, images: Tensor) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(WIDTH, 6), nn.Dropout(), nn.Linear(6, 1)).eval()
    tensors = {f"layers.{key}": value for key, value in layers.state_dict().items()}
    for name in ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic.safetensors"):
        file = folder / name
        save_file(tensors, file) if name.endswith("safetensors") else torch.save(tensors, file)
        try:
            extractor = open_extractor(f"clip:{folder}", model)
            assert extractor is not None
            features = extractor.features(images)
            found = score(Samples(features, text=extractor.text), None, ["aesthetic"])
        finally:
            file.unlink()
        assert found.values["metric.aesthetic"] == pytest.approx(
            float(layers(features).mean()), rel=1e-5
        )


def test_what_is_missing_is_null_with_the_reason(extractor: Extractor, images: Tensor) -> None:
    names = ["clip_score", "preference", "aesthetic"]
    features = extractor.features(images)
    without = score(Samples(features, text=extractor.text), None, names)
    assert set(without.values.values()) == {None}
    assert without.reasons["metric.clip_score"] == "the model has no prompts"
    assert "has no aesthetic.safetensors" in without.reasons["metric.aesthetic"]
    other = score(Samples(features, prompts=PROMPTS), None, names)
    assert "needs the extractor clip:DIR" in other.reasons["metric.preference"]


def test_bad_folders_and_names(folder: Path, tmp_path: Path, model: Model) -> None:
    with pytest.raises(InputError, match="write clip:DIR"):
        open_extractor("clip", model)
    with pytest.raises(InputError, match=r"no CLIP model \(no config\.json\)"):
        open_extractor(f"clip:{tmp_path}", model)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        open_extractor(f"clip:{tmp_path}", model)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be opened"):
        open_extractor(f"clip:{tmp_path}", model)
    with pytest.raises(InputError, match="clip_score"):
        score(torch.zeros(3, 2), None, ["clip_scores"])


def test_prompts_belong_to_the_sample(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\nthree\n")
    model = load_model(f"diffusers:{folders['sd']}", prompts=str(file))
    told = prompts_of(model, 3, [range(5), range(2, 5)])
    assert told is not None
    assert told[0] is not None
    assert told[1] == told[0][2:]
    condition = model.draw_condition(3, range(5))
    assert isinstance(condition, dict)
    same = [told[0].index(p) for p in told[0]]
    assert torch.equal(condition["prompt"], condition["prompt"][same])
    assert prompts_of(load_model("analytic:mixture-2d"), 0, [range(2)]) is None
