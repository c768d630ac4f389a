"""YAML: what is read as what, and what is refused, without the parser's own tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ld3_dist.core.errors import InputError
from ld3_dist.core.yaml_text import MOST_VALUES, load_yaml, parse_yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E+3", 1000.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("1_000", 1000),
        ("0x10", 16),
        ("+7", 7),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("No", "No"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("~", None),
        ("", None),
        ("[a, ]", ["a"]),
        ("[a, null]", ["a", None]),
        ("{on: off, 1: 2, true: x}", {"on": "off", "1": 2, "true": "x"}),
        ("a: &x {p: 1}\nb: *x", {"a": {"p": 1}, "b": {"p": 1}}),
        ("a: &x {p: 1, q: 1}\nb: {<<: *x, q: 2}", {"a": {"p": 1, "q": 1}, "b": {"p": 1, "q": 2}}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
    ],
)
def test_values_are_what_was_written(text: str, value: Any) -> None:
    found = parse_yaml(text, "my.yaml")
    assert found == value
    assert type(found) is type(value)


def test_numbers_that_are_none() -> None:
    assert math.isnan(parse_yaml(".nan", "my.yaml"))
    assert parse_yaml("-.inf", "my.yaml") == -math.inf


MULTIPLYING = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "say"),
    [
        ("a: 1\nb: 2\na: 3", "key 'a' stands twice, in line 1 and in line 3"),
        ("m: {p: 1, p: 1}", "key 'p' stands twice, in line 1 and in line 1"),
        ("a: 1\n'a': 3", "key 'a' stands twice"),
        ("[" * 500_000, "500000 brackets open at once"),
        ("{a: " * 3000, "3000 brackets"),
        ("- " * 100_000, "nested more than 64 levels"),
        ("? " * 100_000, "a key must be a word"),
        ("\n".join(" " * i + "a:" for i in range(500)), "nested more than 64 levels"),
        (MULTIPLYING, "more than 100,000 values"),
        ("a: &a [*a]", r"\*a stands for nothing"),
        ("a: *b", r"\*b stands for nothing|undefined alias"),
        ("a: " + "1" * 500, "line 1: 111111111111… is a number of 500 characters"),
        ("a: 0." + "1" * 500, "a number of 502 characters"),
        ("x: 1\na: 1e999", "line 2: 1e999 is too large"),
        ("a: 010", "line 1: 010 has a leading zero.*write 10"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML: line 1: the tag"),
        ("a: !!binary aGVsbG8=", "the tag"),
        ("a: !!set {b}", "the tag"),
        ("a: !mine 3", "the tag '!mine'"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins"),
        ('a: "x\\0y"', r"line 1: has a control character \(U\+0000\)"),
        ('"x\\ay": 1', r"control character \(U\+0007\)"),
        ("[a]: 1", "a key must be a word"),
        ("<<: 3", "<< must be followed"),
        ("a: b: c", "not valid YAML: mapping values are not allowed"),
        ("a: [1", "not valid YAML"),
        ("[" + "a," * (MOST_VALUES + 1) + "]", "more than 100,000 values"),
    ],
    ids=range(27),
)  # fmt: skip
def test_what_is_refused_names_file_and_line(text: str, say: str) -> None:
    with pytest.raises(InputError, match=say) as caught:
        parse_yaml(text, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert len(str(caught.value)) < 300


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text("abc on:#'-\n", max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text("abyn~1", min_size=1, max_size=3), inner, max_size=4),
    max_leaves=20,
))  # fmt: skip
def test_what_the_usual_writer_writes_is_read_back(value: Any) -> None:
    assert parse_yaml(yaml.safe_dump(value), "my.yaml") == value


@pytest.mark.parametrize(
    "file", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda file: file.name
)
def test_the_shipped_files_mean_what_they_meant(file: Path) -> None:
    """But for on and off, which are words."""
    theirs = list(yaml.safe_load_all(file.read_text()))
    if len(theirs) == 1 and "ray" not in file.name:
        assert load_yaml(file, "a YAML file") == theirs[0]


def test_files_are_read_as_all_text_is(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfmodels: [digits]\r\n")
    assert load_yaml(tmp_path / "a.yaml", "a YAML file") == {"models": ["digits"]}
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(InputError, match="1,000,001 bytes"):
        load_yaml(tmp_path / "big.yaml", "a YAML file")
