"""From a file to an Experiment: what unquoted words, numbers and several mistakes become."""

from __future__ import annotations

from pathlib import Path

import pytest

from ld3_dist.core.errors import InputError
from ld3_dist.experiment import load_experiment
from ld3_dist.experiment.reading import parse_experiment
from ld3_dist.experiment.settings import Experiment
from ld3_dist.experiment.shape import all_keys, complaints, known_keys

HEAD = "models: [digits]\nsolvers: [ddim]\nnfe: [3]\n"


def read(tmp_path: Path, text: str) -> Experiment:
    (tmp_path / "my.yaml").write_text(HEAD + text)
    return load_experiment(tmp_path / "my.yaml")


def test_numbers_are_numbers_wherever_they_stand(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "search: {grid: {gamma: [0, 1e-3]}, optuna: {lr: {low: 1e-2, high: 1E+0}}}\n"
        "resources: {deadline: 1e4}\n",
    )
    assert found.search.grid["gamma"] == (0, 0.001)
    assert found.resources.deadline == 10_000.0


def test_words_and_switches(tmp_path: Path) -> None:
    found = read(tmp_path, "lpips: {upsample: true}\nname: no\n")
    assert found.lpips.upsample is True
    assert found.name == "no"  # a word, and not false
    with pytest.raises(InputError, match=r"upsample = 'yes': must be true or false; write true"):
        read(tmp_path, "lpips: {upsample: yes}\n")


def test_a_mark_at_the_beginning_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert load_experiment(tmp_path / "my.yaml").nfe == (3,)


def test_the_shape_is_that_of_the_models() -> None:
    assert known_keys(Experiment, ()) == tuple(Experiment.model_fields)
    keys = all_keys(Experiment)
    for key in ("models.guidance", "search.members.seeds", "learn.gamma", "search.grid.start"):
        assert key in keys
    assert not list(complaints(Experiment, Experiment(
        models=("digits",), solvers=("ddim",), nfe=(3,)  # type: ignore[arg-type]
    ).model_dump(mode="json")))  # fmt: skip


def test_mistakes_of_every_kind_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        parse_experiment(
            {"models": ["digits"], "solvers": ["ddmi"], "nfe": 3, "gama": 1, "pairs": {"train": 0}},
            "my.yaml",
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for part in ("nfe = 3", "'gama'", "'ddmi'", "pairs.train = 0"):
        assert sum(part in line for line in lines) == 1


@pytest.mark.parametrize("data", [None, [], "digits", 3, {1: 2}, {None: 1}])
def test_what_is_no_mapping_of_words(data: object) -> None:
    with pytest.raises(InputError, match=r"^my\.yaml: must hold keys like models"):
        parse_experiment(data, "my.yaml")
