"""One reader for all text: what it returns and what it refuses, before it reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ld3_dist.core.errors import InputError
from ld3_dist.core.text import file_name, parse_json, read_lines, read_text

WHAT = "a text file of prompts"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a cat\n", "a cat\n"),
        (b"\xef\xbb\xbfa cat\n", "a cat\n"),
        ("ein Kätzchen\u2028 und\ttab".encode(), "ein Kätzchen\u2028 und\ttab"),
        (b"", ""),
    ],
)
def test_text_is_read_without_its_mark(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt", WHAT) == text


@pytest.mark.parametrize(
    ("data", "say"),
    [
        ("a cat".encode("utf-16"), "UTF-16; save it in UTF-8"),
        ("a cat".encode("utf-16-be"), "UTF-16 or UTF-32 without a mark; save it in UTF-8"),
        (b"\xfe\xff" + "a cat".encode("utf-16-be"), "UTF-16; save it in UTF-8"),
        ("a cat".encode("utf-32"), "UTF-32; save it in UTF-8"),
        ("one\ntwo\nKätzchen".encode("latin-1"), "byte 0xe4 in line 3"),
        (b"one\r\ntwo\rthr\x07ee", r"control character \(U\+0007\) in line 3, character 4; remove"),
        (b"one\ntw\0o", r"U\+0000\) in line 2, character 3"),
        (b"a\x0cb", r"U\+000C"),
        ("a\x85b".encode(), r"U\+0085"),
        ("one\n\ufefftwo".encode(), r"byte-order mark \(U\+FEFF\) inside, in line 2, character 1"),
    ],
)
def test_other_encodings_and_control_characters_are_refused(
    tmp_path: Path, data: bytes, say: str
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    with pytest.raises(InputError, match=say) as caught:
        read_text(file, WHAT)
    assert str(caught.value).startswith(f"{file}: ")


def test_kind_and_size_are_looked_at_before_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(10**12)  # a hole, not on the disk
    for path, say in (
        (tmp_path / "pipe", "a device, a pipe or a socket"),
        ("/dev/zero", "a device, a pipe or a socket"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "huge", "1,000,000,000,000 bytes, at most 1,000,000"),
        (tmp_path / ("n" * 300), "name too long"),
        (str(tmp_path / "a\0b"), "not a path"),
        (" ", "an empty path"),
    ):
        with pytest.raises(InputError, match=say) as caught:
            read_text(path, WHAT)
        assert f"the path of {WHAT}" in str(caught.value)


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    assert read_text(tmp_path / "a", WHAT, limit=10) == "x" * 10
    with pytest.raises(InputError, match="has 10 bytes, at most 9"):
        read_text(tmp_path / "a", WHAT, limit=9)


def test_lines_end_at_ends_of_lines_only(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\r\n\r\n  a\u2028dog \ra\u2029fox\n\n".encode())
    assert read_lines(file, WHAT) == ["a cat", "a\u2028dog", "a\u2029fox"]
    file.write_text(" \n\n")
    with pytest.raises(InputError, match="is empty; write at least one line"):
        read_lines(file, WHAT)


@pytest.mark.parametrize(
    ("text", "say"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' stands there twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "1e999 is larger"),
        (f'{{"a": {"1" * 5000}}}', "a number of 5000 characters"),
        ("[" * 100_000, "100000 brackets open at once; at most 64"),
        ('{"a":' * 3000, "3000 brackets"),
        ('{"a": 1', "not valid JSON, or cut short"),
        ("", "not valid JSON"),
    ],
)
def test_json_that_is_refused(text: str, say: str) -> None:
    with pytest.raises(InputError, match=say):
        parse_json(text)


LEAVES = (
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**18), 10**18)
    | st.text(max_size=9)
)


def nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)


@given(st.recursive(LEAVES, nested, max_leaves=20))
def test_json_is_otherwise_read_as_it_was_written(value: object) -> None:
    text = json.dumps(value)
    if text.count("[") + text.count("{") <= 64:
        assert parse_json(text) == value


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=9, unique=True))
def test_file_names_are_plain_and_do_not_collide(names: list[str]) -> None:
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    for file in files:
        assert file.isascii()
        assert not set(file) & set('/\\:*?"<>|[]% \n')
        assert not file.startswith(".")


def test_file_names_of_cells() -> None:
    assert file_name("digits") == "digits"
    assert file_name("a_b") == "a_b"
    assert file_name("a/b").startswith("a_b~")
    assert len(file_name("x" * 300)) < 100
    assert len({file_name("x" * 300), file_name("x" * 301), file_name("x" * 80)}) == 3
