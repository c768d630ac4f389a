"""Bad experiments by the hundred: each gets one message with file, key, value and remedy.

A row is what is written, and what the message must say. Nothing may be written by reading, and no
message may speak of the program's own types. The whole file has a timeout instead of a stopwatch.
"""

from __future__ import annotations

import copy
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_experiments import FINE, TEXTS, UNBOUNDED, VALUES
from slowly import few

from ld3_dist.cli import app as cli
from ld3_dist.core.errors import InputError
from ld3_dist.experiment import load_experiment, settings
from ld3_dist.experiment.reading import blamed_on, parse_experiment
from ld3_dist.experiment.shape import all_keys

pytestmark = pytest.mark.timeout(120)

OURS = re.compile(
    r"\b(str|int|bool|float|tuple|dict|NoneType|pydantic|validat\w+|union|constructor|"
    r"BaseModel|Range\(|function-\w+|<class|object at|Traceback)\b"
)
"""Words of the program that no user needs to know."""

BOUNDED = "limits" in Path(str(settings.__file__)).read_text()
"""True where the settings are made of those types."""


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(FINE)
    *outer, last = path.split(".")
    place = data
    for part in outer:
        place = place.setdefault(part, {})
    place[last] = value
    return data


def test_there_are_enough_and_the_rest_is_fine() -> None:
    assert len(VALUES) + len(TEXTS) >= 150
    assert parse_experiment(FINE).name == "tiny"


def refuse(file: Path, parts: list[str]) -> None:
    before = sorted(os.listdir(file.parent))
    with pytest.raises(InputError) as caught:
        load_experiment(file)
    message = str(caught.value)
    for line in message.splitlines():
        assert line.startswith(f"{file}: ")
    for part in parts:
        assert part in message, message
    assert not OURS.search(message.replace(str(file), "")), message
    assert len(message) < 1500
    assert sorted(os.listdir(file.parent)) == before


@pytest.mark.parametrize(
    ("path", "value", "parts"), VALUES, ids=[f"{p}={v!r}"[:60] for p, v, _ in VALUES]
)
def test_bad_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: Any, parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(changed(path, value)))
    refuse(tmp_path / "my.yaml", parts)


@pytest.mark.skipif(not BOUNDED, reason="the settings do not use the types of limits")
@pytest.mark.parametrize(
    ("path", "value", "parts"), UNBOUNDED, ids=[f"{p}={v!r}"[:40] for p, v, _ in UNBOUNDED]
)
def test_numbers_and_names_have_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: Any, parts: list[str]
) -> None:
    test_bad_values(tmp_path, monkeypatch, path, value, parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"), TEXTS, ids=[name.replace(" ", "-") for name, _, _ in TEXTS]
)
def test_bad_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_bytes(content)
    refuse(tmp_path / "my.yaml", parts)


@pytest.mark.parametrize("command", ["show", "sweep", "teach", "evaluate", "doctor"])
@pytest.mark.parametrize(("path", "value", "parts"), VALUES[::23])
@pytest.mark.siblings(10)
def test_commands_end_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, path: str, value: Any, parts: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(changed(path, value)))
    monkeypatch.setattr(sys, "argv", ["ld3-dist", command, "my.yaml"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert all(part in err for part in ("my.yaml", *parts))
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["my.yaml"]


ODD: list[Any] = [
    None, True, 0, -1, 1.5, 10**25, float("nan"), float("inf"), "", "x", "[a]", "é\u2028",
    [], [[]], [None], [True], ["x", 3], [{}], [1, [2]],
    {}, {"x": 1}, {"low": 1}, {"x": None}, {"a": {"b": {"c": []}}},
]  # fmt: skip
EVERY_KEY = [key.replace("models.", "models.0.") for key in all_keys(settings.Experiment)]


@pytest.mark.parametrize("key", few(EVERY_KEY, EVERY_KEY[::3]))
@pytest.mark.siblings(16)
def test_whatever_stands_at_a_key_is_taken_or_refused(key: str) -> None:
    """No other error, and no message in the program's own words."""
    for value in ODD:
        data = copy.deepcopy(FINE) | {"models": [{"model": "digits"}]}
        *outer, last = key.split(".")
        place: Any = data
        for part in outer:
            place = place[0] if part == "0" else place.setdefault(part, {})
        place[last] = value
        message = "my.yaml: "
        try:
            parse_experiment(data, "my.yaml")
        except InputError as error:
            message = str(error)
        assert message.startswith("my.yaml: ")
        assert "a value cannot be used" not in message, f"{value!r}: {message}"
        assert not OURS.search(message), f"{value!r}: {message}"


def test_special_files_are_refused_before_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(InputError, match="cannot be read"):
            load_experiment(place)


def test_many_mistakes_are_not_all_told() -> None:
    with pytest.raises(InputError, match="and 35 more mistakes"):
        parse_experiment({**FINE, **{f"wrong{i}": i for i in range(55)}}, "my.yaml")


def test_a_cause_found_later_is_named_with_file_and_key() -> None:
    with (
        pytest.raises(InputError, match=r"^my\.yaml: models\.0\.model: no such file$"),
        blamed_on("my.yaml", "models.0.model"),
    ):
        raise InputError("no such file")
    with (
        pytest.raises(InputError, match=r"^my\.yaml: said already$"),
        blamed_on("my.yaml", "models.0.model"),
    ):
        raise InputError("my.yaml: said already")
