"""The qualities of the embedded models on docs/models.md are those of results/models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ld3_dist import load_model

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "models.md").read_text(encoding="utf-8").split())


def found(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / "models" / f"{name}.json").read_text())


def digits(name: str) -> list[str]:
    made = found(name)
    frechet = made["frechet"]
    return [
        f"{truncated(made['agreement'])} % of {made['teacher']['samples']:,} samples of the "
        f"{made['teacher']['nfe']}-evaluation teacher are classified as asked",
        f"Their Fréchet distance to the data is {frechet['ratio']:.2f} times that between two "
        f"halves of the data ({frechet['ratio_same_size']:.2f} times at equal sample size)",
    ]


def fashion() -> list[str]:
    made = found("fashion")
    frechet, teacher = made["frechet"], made["teacher"]
    return [
        f"{truncated(made['agreement'])} % of {teacher['asked']:,} samples of the "
        f"{teacher['nfe']}-evaluation teacher are classified as asked; the classifier reads "
        f"{truncated(made['agreement_of_test_images'])} % of the test images correctly",
        f"The Fréchet distance of {teacher['samples']:,} samples to the test images is "
        f"{frechet['ratio']:.2f} times that between two halves of the test images "
        f"({frechet['ratio_same_size']:.2f} times at equal sample sizes)",
    ]


def truncated(share: float) -> str:
    """A share in percent, rounded down: what is said is reached."""
    return f"{int(1000 * share + 1e-6) / 10:.1f}"


@pytest.mark.parametrize("sentence", [*digits("digits"), *digits("digits-flow"), *fashion()])
def test_the_page_says_what_was_measured(sentence: str) -> None:
    assert sentence in PAGE


@pytest.mark.parametrize("name", ["digits", "digits-flow", "fashion"])
def test_it_was_measured_on_the_network_that_is_shipped(name: str) -> None:
    assert load_model(name).hash == found(name)["model_sha256"]
