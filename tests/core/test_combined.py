"""Distances made of others: sums, one layer of an extractor, resized images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from schedules import one_thread  # noqa: F401
from torch import Tensor, nn

import ld3_dist as ld3
from ld3_dist.core.combined import terms_of, written
from ld3_dist.core.distance import (
    check_distance,
    distance_entry,
    extractor_of_distance,
    make_distance,
)
from ld3_dist.core.errors import InputError
from ld3_dist.core.features import Extractor
from ld3_dist.core.user_code import content_in, label
from ld3_dist.experiment import parse_experiment
from ld3_dist.schedule.distances import open_distance

SMALL = {"name": "x", "models": ["digits"], "solvers": ["ddim"], "nfe": [2]}
GENERATOR = torch.Generator().manual_seed(0)
A, B = (torch.rand(5, 1, 8, 8, generator=GENERATOR) * 2 - 1 for _ in range(2))


def maps(x: Tensor) -> list[Tensor]:
    return [x.flatten(1), x.square().flatten(1) * 3]


LAYERED = Extractor("two layers", "0", lambda x: x.flatten(1), maps, layers=("low", "high"))


def test_a_sum_is_the_sum_of_its_terms() -> None:
    l1, l2 = make_distance("l1"), make_distance("l2")
    feature = make_distance("feature", LAYERED)
    both = make_distance("l2+0.1*feature+2e-3*l1", LAYERED)
    expected = l2(A, B) + 0.1 * feature(A, B) + 2e-3 * l1(A, B)
    torch.testing.assert_close(both(A, B), expected)
    assert len(both.features(A)) == 4
    # the teacher's features are made once and compared with those of others
    torch.testing.assert_close(both.between(both.features(A), both.features(B)), expected)
    check_distance(both, (1, 8, 8))
    assert both.name == "l2+0.1*feature+2e-3*l1"


def test_names_of_sums() -> None:
    assert terms_of("l2") == ((1.0, "l2"),)
    assert terms_of("l2+0.1*feature:auto@2") == ((1.0, "l2"), (0.1, "feature:auto@2"))
    assert terms_of("1e-3*l1+1e+2*l2") == ((0.001, "l1"), (100.0, "l2"))
    own = "python:/a+b/2*c.py:mine"
    assert terms_of(own) == ((1.0, own),)
    assert terms_of(f"l2+0.5*{own}") == ((1.0, "l2"), (0.5, own))
    assert written({"l2": 1, "feature": 0.1}) == "l2+0.1*feature"
    assert label(f"l2+0.5*{own}") == "l2+0.5*2*c.py:mine"


def test_the_content_of_files_in_a_sum_counts(tmp_path: Path) -> None:
    found = []
    for text in (
        "return (a - b).abs().flatten(1).mean(1)",
        "return (a - b).flatten(1).norm(dim=1)",
    ):
        (tmp_path / "own.py").write_text(f"def mine(a, b):\n    {text}\n")
        spec = f"python:{tmp_path}/own.py:mine"
        made = make_distance(f"l2+0.5*{spec}")
        expected = make_distance("l2")(A, B) + 0.5 * make_distance(spec)(A, B)
        torch.testing.assert_close(made(A, B), expected)
        found.append((content_in(spec), content_in(f"l2+0.5*{spec}")))
    assert found[0][0] == found[0][1] is not None
    assert found[0] != found[1]


def test_one_layer_of_an_extractor() -> None:
    for layer, power, scale in (("low", 1, 1), ("0", 1, 1), ("high", 2, 3), ("1", 2, 3)):
        made = make_distance(f"feature@{layer}", LAYERED)
        expected = (scale * (A**power - B**power)).square().flatten(1).mean(1)
        torch.testing.assert_close(made(A, B), expected)
    with pytest.raises(InputError, match="unknown layer 'hihg': did you mean 'high'"):
        make_distance("feature@hihg", LAYERED)
    with pytest.raises(InputError, match="unknown layer '2': one of low, high"):
        make_distance("feature@2", LAYERED)
    unnamed = replace(LAYERED, layers=())
    with pytest.raises(InputError, match="two layers gives its layers no names; give a number"):
        make_distance("feature@low", unnamed)
    with pytest.raises(InputError, match="two layers has 2 layers, numbered from 0"):
        make_distance("feature@2", unnamed)(A, B)


def test_the_layers_of_a_packaged_classifier() -> None:
    model = ld3.load_model("digits")
    whole = open_distance("feature", model, "cpu")
    parts = [open_distance(f"feature@stage-{i}", model, "cpu") for i in (1, 2, 3)]
    expected = sum(part(A, B) for part in parts)
    torch.testing.assert_close(whole(A, B), expected)
    with pytest.raises(InputError, match="unknown layer 'stage-4': did you mean 'stage-"):
        open_distance("feature:auto@stage-4", model, "cpu")


def test_a_resized_distance_compares_smaller_images() -> None:
    """Halving by antialiased interpolation keeps a constant, and a constant's distance."""
    flat = torch.full((2, 3, 64, 48), 0.25)
    made = make_distance("resized:16:l2")
    torch.testing.assert_close(made(flat, -flat), torch.full((2,), 0.25))
    a, b = (torch.rand(2, 3, 64, 48, generator=GENERATOR) for _ in range(2))
    small = [
        nn.functional.interpolate(x, size=[21, 16], mode="bilinear", antialias=True) for x in (a, b)
    ]
    torch.testing.assert_close(made(a, b), make_distance("l2")(*small))
    check_distance(made, (3, 32, 32))
    # noise of single pixels is averaged away, which plain l2 sees
    assert made(a, b).mean() < 0.2 * make_distance("l2")(a, b).mean()
    assert distance_entry("resized:64:lpips-alex").space == "image"
    assert distance_entry("l2+0.1*lpips-vgg").trunk == "vgg"
    assert extractor_of_distance("l2+0.1*resized:8:feature:identity@0") == "identity"
    assert extractor_of_distance("l2+0.1*l1") is None
    with pytest.raises(InputError, match=r"resizes images \[B, C, H, W\], got \(5, 2\); use l2"):
        made(torch.ones(5, 2), torch.ones(5, 2))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("l2+", "a term is empty"),
        ("l2+0*l1", "the weight '0' must be a number above 0"),
        ("l2+1.2.3*l1", "the weight '1.2.3' must be"),
        ("l2+l2", "'l2' stands there twice"),
        ("l2+0.1*l3", "unknown distance 'l3'"),
        ("resized:l2", "write resized:PIXELS:DISTANCE"),
        ("resized:1:l2", "with 4 to 4096 pixels"),
        ("resized:64:l7", "unknown distance 'l7'"),
        ({}, "an empty mapping"),
        ({"l2": -1}, "the weight '-1' must be"),
        ({"l2": "x"}, "the weight 'x' must be"),
        ({"l2": True}, "must be a name and its weight"),
    ],
)
def test_wrong_names_are_refused(name: Any, said: str) -> None:
    model = ld3.load_model("digits")
    with pytest.raises(InputError, match=re.escape(said)):
        open_distance(name, model, "cpu")
    experiment = SMALL | {"distance": name}
    with pytest.raises(InputError, match=re.escape(said)):
        parse_experiment(experiment)


@pytest.mark.parametrize("given", ["l2+0.1*l1", {"l2": 1, "l1": 0.1}])
def test_yaml_and_python_mean_the_same(given: str | Mapping[str, float]) -> None:
    experiment = parse_experiment(SMALL | {"distance": given})
    assert experiment.distance == "l2+0.1*l1"
    model = ld3.load_model("analytic:mixture-2d")
    pairs = ld3.teach(model, 12, teacher="unipc-3/10/karras")
    learned = ld3.learn(
        model, "ddim", 2, pairs, distance=given, starts=["karras"], epochs=2, batch=3
    )
    same = ld3.learn(
        model, "ddim", 2, pairs, distance="l2+0.1*l1", starts=["karras"], epochs=2, batch=3
    )
    other = ld3.learn(model, "ddim", 2, pairs, starts=["karras"], epochs=2, batch=3)
    assert learned.knots == same.knots
    assert learned.losses["valid_loss"] != other.losses["valid_loss"]
