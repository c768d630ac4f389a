"""Images against prompts: tiny random networks in their authors' formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_judges import OpenClip, Reward, bert_words, save_clip, save_hps, tiny
from safetensors.torch import load_file, save_file
from tiny_pipelines import clip_tokenizer
from torch import Tensor, nn

import ld3_dist as ld3
from ld3_dist.core.errors import InputError
from ld3_dist.core.features import Judge
from ld3_dist.metrics.extractors import open_extractor
from ld3_dist.metrics.judges import judges, open_judges
from ld3_dist.metrics.judges.images import MEAN, STD, pixels
from ld3_dist.metrics.judges.prompted import difference
from ld3_dist.metrics.scores import score
from ld3_dist.models import load_model
from ld3_dist.schedule.evaluating import prompts_of

pytest.importorskip("transformers")
PROMPTS = ["a cat", "two dogs", "a cat", "red"]
SIDE, WIDTH = 12, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel as Hugging Face saves it."""
    place = tmp_path_factory.mktemp("clip") / "tiny"
    save_clip(place, SIDE, WIDTH)
    return place


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 20, 30, generator=torch.Generator().manual_seed(2)) * 2 - 1


def judge(metric: str) -> Judge:
    (found,) = open_judges([metric]).values()
    return found


def theirs(folder: Path, images: Tensor) -> tuple[Tensor, float]:
    """The similarities of the library's own processor and model, and its scale."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    net: Any = CLIPModel.from_pretrained(folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    prepared = processor(list((images + 1) / 2), do_rescale=False, return_tensors="pt")
    words = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = net(
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            pixel_values=prepared["pixel_values"],
        )
    return out.logits_per_image.diagonal(), float(net.logit_scale.detach().exp())


def test_clip_and_pick_scores_are_the_librarys_own(folder: Path, images: Tensor) -> None:
    square = images[:, :, :SIDE, :SIDE]
    logits, scale = theirs(folder, square)
    found = {name: judge(f"{name}:{folder}") for name in ("clip_score", "pick_score")}
    made = found["pick_score"].score(square, PROMPTS)
    torch.testing.assert_close(made, logits, rtol=1e-4, atol=1e-4)
    wanted = (100 * logits / scale).clamp_min(0)
    made = found["clip_score"].score(square, PROMPTS)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(found["pick_score"].score(square, PROMPTS[::-1]), logits, atol=1e-3)


def test_a_clip_model_without_all_its_weights(folder: Path, tmp_path: Path) -> None:
    """The library would draw them at random, and say so in its log only."""
    place = tmp_path / "clip"
    shutil.copytree(folder, place)
    tensors = load_file(place / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"hold no visual_projection\.weight of CLIPModel"):
        judge(f"clip_score:{place}")


@pytest.fixture(scope="module")
def hps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the form of HPSv2's, with the tokenizer's files beside it."""
    place = tmp_path_factory.mktemp("hps")
    save_hps(place)
    return place


def test_hpsv2_is_read_in_its_own_format(hps: Path, images: Tensor) -> None:
    tokenizer, prompts = clip_tokenizer(hps / "words"), [*PROMPTS[:3], "a cat and two red dogs"]
    tokens = torch.zeros(4, OpenClip.LENGTH, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        numbers = tokenizer(prompt, truncation=True)["input_ids"]
        tokens[i, : len(numbers)] = torch.tensor(numbers)
    net: Any = tiny(OpenClip)
    found = judge(f"hpsv2:{hps}").score(images, prompts)
    wanted = net.cosines(pixels(images, OpenClip.SIDE, "pad"), tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    cut = net.cosines(pixels(images, OpenClip.SIDE), tokens)
    found = judge(f"pick_score:{hps}").score(images, prompts)
    torch.testing.assert_close(found, cut * np.exp(2.0), rtol=1e-4, atol=1e-4)


def test_imagereward_is_read_in_its_own_format(tmp_path: Path, images: Tensor) -> None:
    net: Any = tiny(Reward)
    torch.save(net.state_dict(), tmp_path / "ImageReward.pt")
    bert_words(tmp_path)
    numbers = {word: i for i, word in enumerate(Reward.WORDS)}
    tokens = torch.zeros(4, 6, dtype=torch.long)
    for i, prompt in enumerate(PROMPTS):
        words = ["[CLS]", *prompt.split(), "[SEP]"]
        tokens[i, : len(words)] = torch.tensor([numbers[word] for word in words])
    wanted = net.rewards(pixels(images, Reward.SIDE), tokens, tokens != 0)
    found = judge(f"image_reward:{tmp_path}").score(images, PROMPTS)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.01
    again = judge(f"image_reward:{tmp_path}").score(images, [*PROMPTS[1:], PROMPTS[0]])
    assert (again - found).abs().min() > 1e-4


def test_images_are_cut_or_padded_to_squares(images: Tensor) -> None:
    wide = images[:, :, :SIDE, : SIDE + 6]
    torch.testing.assert_close(pixels(wide, SIDE), pixels(wide[..., 3 : SIDE + 3], SIDE))
    padded = pixels(torch.ones(1, 1, 6, 12), SIDE, "pad")
    white, black = ((x - torch.tensor(MEAN)) / torch.tensor(STD) for x in (1, 0))
    torch.testing.assert_close(padded[0, :, 6, 6], white)
    torch.testing.assert_close(padded[0, :, 0, 6], black)
    assert padded.shape == (1, 3, SIDE, SIDE)
    with pytest.raises(InputError, match=r"\[B, 1 or 3, H, W\]"):
        pixels(torch.zeros(2, 5), SIDE)


def test_the_aesthetic_layers_are_laions(folder: Path, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"has no aesthetic\.safetensors"):
        judge(f"aesthetic:{folder}")
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(WIDTH, 6), nn.Dropout(), nn.Linear(6, 1)).eval()
    extractor = open_extractor(f"clip:{folder}", load_model("analytic:mixture-2d"))
    assert extractor is not None
    wanted = layers(extractor.features(images)).squeeze(-1)
    tensors = {f"layers.{key}": value for key, value in layers.state_dict().items()}
    other = {"layers.0.weight": torch.zeros(1, 5), "layers.0.bias": torch.zeros(1)}
    for name in ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic.safetensors"):
        file = folder / name
        save = save_file if name.endswith("safetensors") else torch.save
        try:
            save(tensors, file)
            found = judge(f"aesthetic:{folder}")
            save(other, file)
            with pytest.raises(InputError, match="the layers take 5 features"):
                judge(f"aesthetic:{folder}")
        finally:
            file.unlink()
        assert not found.reads_prompts
        torch.testing.assert_close(found.score(images, [""] * 4), wanted)


def test_bad_folders_and_names(folder: Path, hps: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="write clip:DIR"):
        open_extractor("clip", load_model("analytic:mixture-2d"))
    for name in ("clip_score", "pick_score", "hpsv2", "aesthetic"):
        with pytest.raises(InputError, match=rf"metric '{name}:.*is no folder; download"):
            judge(f"{name}:{tmp_path}/none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        judge(f"clip_score:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be opened"):
        judge(f"clip_score:{tmp_path}")
    with pytest.raises(
        InputError, match=r"model\.safetensors: cannot be read .*; download ImageReward"
    ):
        judge(f"image_reward:{tmp_path}")
    with pytest.raises(InputError, match="one file is expected: download ImageReward"):
        judge(f"image_reward:{tmp_path}/none")
    with pytest.raises(InputError, match="clip_score has another folder too"):
        open_judges([f"clip_score:{folder}", f"clip_score:{hps}"])
    with pytest.raises(InputError, match="unknown metric 'clip_scores'"):
        score(torch.zeros(3, 2), None, ["clip_scores"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("ln_final.bias"), "ln_final|final_layer_norm.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "its key 'extra' belongs to no CLIP"),
        (lambda state: state.pop("visual.conv1.weight"), "no CLIP as OpenCLIP saves it"),
    ],
)
def test_a_checkpoint_of_another_network(
    hps: Path, tmp_path: Path, change: Any, reason: str
) -> None:
    state = dict(tiny(OpenClip).state_dict())
    change(state)
    torch.save({"state_dict": state}, tmp_path / "HPS.pt")
    clip_tokenizer(tmp_path / "words").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=reason):
        judge(f"hpsv2:{tmp_path}")


def test_a_folder_without_its_tokenizer(tmp_path: Path) -> None:
    torch.save({"state_dict": tiny(OpenClip).state_dict()}, tmp_path / "HPS.pt")
    with pytest.raises(InputError, match="words, the network knows 190; copy the files"):
        judge(f"hpsv2:{tmp_path}")
    (tmp_path / "HPS.pt").unlink()
    torch.save(tiny(Reward).state_dict(), tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("a\ncat\n")
    with pytest.raises(InputError, match="words, the network knows 12"):
        judge(f"image_reward:{tmp_path}")


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    clip_tokenizer(tmp_path / "words").save_pretrained(tmp_path)
    (tmp_path / "HPS.pt").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    for name in ("hpsv2", "image_reward"):
        with pytest.raises(InputError, match=r"cannot be (read|opened)"):
            judge(f"{name}:{tmp_path}")
    assert not (tmp_path / "ran").exists()


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


def test_evaluate_scores_fresh_samples_of_a_model_with_prompts(
    folders: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\nthree\n")
    model = ld3.load_model(f"diffusers:{folders['sd']}", prompts=str(file))
    names = [f"clip_score:{folder}", "hpsv2", "fid"]
    frame = ld3.evaluate(
        model, ["karras"], 6, solver="ddim", nfe=3, teacher="ddim/4/karras", metrics=names,
        extractor="none",
    )  # fmt: skip
    assert frame["metric.clip_score"].notna().all()
    assert frame["metric.hpsv2"].isna().all()
    reasons = json.loads(frame["not_measured"].iloc[0])
    assert reasons == {"metric.hpsv2": "no weights are named; write hpsv2:DIR"}
    plain = load_model("digits")
    frame = ld3.evaluate(plain, ["karras"], 6, solver="ddim", nfe=3, metrics=names[:1])
    assert frame["metric.clip_score"].isna().all()
    assert "the model has no prompts" in frame["not_measured"].iloc[0]


def test_every_judge_opens_by_its_name() -> None:
    assert set(judges) == {"clip_score", "pick_score", "hpsv2", "image_reward", "aesthetic"}


def test_a_difference_counts_prompts_and_not_samples() -> None:
    generator = np.random.default_rng(0)
    covered, narrow, repeats, prompts, each = 0, 0, 400, 12, 10
    names = [str(i) for i in range(prompts) for _ in range(each)]
    for _ in range(repeats):
        of_prompt = generator.normal(size=prompts).repeat(each)
        d = 0.3 + of_prompt + 0.2 * generator.normal(size=prompts * each)
        y = torch.from_numpy(generator.normal(size=len(d)))
        low, high = difference(torch.from_numpy(d) + y, y, names)[1:]
        covered += low <= 0.3 <= high
        low, high = difference(torch.from_numpy(d) + y, y)[1:]
        narrow += low <= 0.3 <= high
    assert 0.92 <= covered / repeats <= 0.98
    assert narrow / repeats < 0.7
    x = torch.tensor([1.0, 2.0, 4.0])
    one = difference(x, torch.zeros(3), ["a"] * 3)
    error = np.std([1, 2, 4], ddof=1) / np.sqrt(3)
    assert one.value == pytest.approx(7 / 3)
    assert (one.high - one.low) / 2 == pytest.approx(4.302653 * error, rel=1e-5)
