"""Text from a user: read whole, in UTF-8, or refused with a message that says what to do.

A byte-order mark at the beginning is dropped. Other encodings, control characters, special files
(devices, pipes), folders and files above a limit are refused; size and kind are looked at before
anything is read. Lines end at \\n, \\r\\n or \\r and nowhere else.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InputError

LIMIT = 1_000_000
"""The most bytes of a text file, unless the caller allows more."""

LONGEST_NUMBER = 100
"""The most digits of a number; no setting needs more than a tenth of them."""

DEEPEST = 64
"""The most levels of nested lists and mappings."""

_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
"""Control characters except tab and the ends of lines, and a byte-order mark inside a text."""

_LINE_END = re.compile(r"\r\n|\n|\r")


def read_text(path: str | os.PathLike[str], what: str, limit: int = LIMIT) -> str:
    """The text of a file.

    Args:
        what: the kind of file that is wanted, for the remedy: "an experiment's YAML file".
        limit: the largest size in bytes.

    Raises InputError, which begins with the path, for a file that is missing, unreadable, not a
    regular file, too large, not in UTF-8, or that holds control characters.
    """
    name = os.fspath(path)
    advice = f"give the path of {what}"
    if not name.strip():
        raise InputError(f"an empty path was given; {advice}")
    if control_character(name):
        raise InputError(f"{name!r}: cannot be read (not a path); {advice}")
    place = os.path.expanduser(name)
    try:
        status = os.stat(place)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name}: cannot be read (it is a folder); {advice}")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{name}: cannot be read (it is a device, a pipe or a socket); write its content "
                f"to a file and {advice}"
            )
        if status.st_size > limit:
            raise _too_large(name, status.st_size, limit, advice)
        with open(place, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); {advice}") from error
    if len(data) > limit:  # files of /proc say that they are empty
        raise _too_large(name, len(data), limit, advice)
    return decode_text(data, name)


def read_lines(path: str | os.PathLike[str], what: str, limit: int = LIMIT) -> list[str]:
    """The lines of a text file that are not blank, stripped.

    Raises InputError as `read_text` does, and for a file without such a line.
    """
    lines = [line.strip() for line in split_lines(read_text(path, what, limit))]
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f"{os.fspath(path)}: is empty; write at least one line into it")
    return lines


def split_lines(text: str) -> list[str]:
    """The lines of a text; they end at \\n, \\r\\n and \\r, not at other separators of Unicode."""
    return _LINE_END.split(text)


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 bytes -> text without a byte-order mark.

    Args:
        where: the file or address that the bytes come from, for messages.

    Raises InputError for another encoding and for control characters, naming the line.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            raise InputError(f"{where}: is text in {encoding}; save it in UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(split_lines(data[: error.start].decode("latin-1")))
        raise InputError(
            f"{where}: is not text in UTF-8 (byte {data[error.start]:#04x} in line {line}); save "
            "it in UTF-8, or give a text file"
        ) from error
    found = _CONTROL.search(text)
    if found:
        raise InputError(f"{where}: {_complaint(text, found)}")
    return text


def control_character(text: str) -> str | None:
    """The first control character of a text, as "U+0007"; None if there is none."""
    found = _CONTROL.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises InputError, which does not name the file, for a text that is not valid JSON, a key that
    stands twice in one object, NaN and infinities, numbers of more than LONGEST_NUMBER characters
    and more than DEEPEST nested lists and objects.
    """
    check_nesting(text)
    try:
        return json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_constant=_no_constant,
            parse_int=_short_int,
            parse_float=_short_float,
        )
    except json.JSONDecodeError as error:
        raise InputError(f"is not valid JSON, or cut short: {error}") from error


def check_nesting(text: str) -> None:
    """Raise InputError if more than DEEPEST brackets are open at once; quoted ones count.

    Parsers take time or stack that grows faster than the number of open brackets.
    """
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise InputError(f"has {deepest} brackets open at once; at most {DEEPEST} are read")


def file_name(name: str) -> str:
    """A file's name for any name of a cell or a model, without collisions.

    A name of letters, digits, dots, dashes and underscores stays as it is. In every other name
    the rest becomes underscores, and a hash of the whole name follows: "a_b" and "a/b" differ.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if plain == name and 0 < len(name) <= 80 and not name.startswith("."):
        return name
    return f"{plain[:80].lstrip('.')}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _too_large(name: str, size: int, limit: int, advice: str) -> InputError:
    return InputError(f"{name}: has {size:,} bytes, at most {limit:,} are read; {advice}")


def _complaint(text: str, found: re.Match[str]) -> str:
    before = split_lines(text[: found.start()])
    place = f"line {len(before)}, character {len(before[-1]) + 1}"
    if found[0] == "\ufeff":
        return f"has a byte-order mark (U+FEFF) inside, in {place}; remove it"
    if found[0] == "\0" and text.count("\0") > len(text) // 4:
        return "looks like text in UTF-16 or UTF-32 without a mark; save it in UTF-8"
    return f"has a control character (U+{ord(found[0]):04X}) in {place}; remove it"


def _distinct(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    known: dict[str, Any] = {}
    for key, value in pairs:
        if key in known:
            raise InputError(f"key {key!r} stands there twice; remove one")
        known[key] = value
    return known


def _no_constant(constant: str) -> None:
    raise InputError(f"{constant} is not a number that it may hold; write a finite one")


def _short_int(digits: str) -> int:
    return int(_checked(digits))


def _short_float(digits: str) -> float:
    number = float(_checked(digits))
    if number in (float("inf"), float("-inf")):
        raise InputError(f"{digits} is larger than any number it may hold; write a finite one")
    return number


def _checked(digits: str) -> str:
    if len(digits) > LONGEST_NUMBER:
        raise InputError(
            f"{digits[:12]}… is a number of {len(digits)} characters, at most {LONGEST_NUMBER} are "
            "read"
        )
    return digits
