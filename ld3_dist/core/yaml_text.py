"""A reader of YAML that drops nothing, executes nothing, and is bounded in time and memory.

    1e-3, .5, 3e2          numbers (YAML 1.1 reads the first as text)
    true, false            switches
    on, off, yes, no       words (YAML 1.1 reads them as switches); settings that are switches
                           refuse them
    1:30, 2026-01-31       words (YAML 1.1 reads a number in base 60, and a date)
    010                    refused (8 in YAML 1.1, 10 in YAML 1.2)

A key that stands twice in a mapping is refused, with both lines. So are tags, several documents,
numbers of hundreds of digits, control characters, and aliases that multiply (each alias counts as
all of its values). `<<` merges mappings as in YAML 1.1.

The parser yields events one by one, so that depth and number of values are bounded while it runs.
It is imported where it is needed: the core runs where only PyTorch is installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from .errors import InputError
from .text import DEEPEST, LONGEST_NUMBER, check_nesting, control_character, read_text

MOST_VALUES = 100_000
"""The most keys, items and values of a file; values of an alias count each time."""

_SLOW_LIMIT = 100_000
"""The most bytes of a file if only the parser in Python is installed, thirty times slower."""

_NULL = {"", "~", "null", "Null", "NULL"}
_SWITCHES = {"true": True, "false": False}
_INTEGER = re.compile(r"[-+]?\d[\d_]*")
_HEX = re.compile(r"[-+]?0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.\d+|\d[\d_]*(\.\d*)?)([eE][-+]?\d+)?")
_UNUSUAL = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
_TAGS = {"tag:yaml.org,2002:str", "!"}
_MERGE = "<<"


def load_yaml(path: str | os.PathLike[str], what: str) -> Any:
    """The content of a YAML file: None, switches, numbers, text, lists, and mappings by text.

    Args:
        what: the kind of file that is wanted, with its article, for messages.

    Raises InputError, which begins with the path, for everything that `read_text` and `parse_yaml`
    refuse.
    """
    return parse_yaml(read_text(path, what), os.fspath(path))


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text; `where` is its name in messages.

    Raises InputError for a text that is not valid YAML and for everything that the module refuses.
    """
    import yaml

    fast = getattr(yaml, "CSafeLoader", None)
    if fast is None and len(text) > _SLOW_LIMIT:
        raise InputError(
            f"{where}: has more than {_SLOW_LIMIT:,} characters; install PyYAML with libyaml, or "
            "write a smaller file"
        )
    try:
        check_nesting(text)
        events = yaml.parse(text, Loader=fast or yaml.SafeLoader)
        return _Builder(events).document()
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise InputError(f"{where}: is not valid YAML: {reason}") from error


class _Builder:
    """Values from the events of a parser."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.events = events
        self.anchors: dict[str, tuple[Any, int]] = {}
        """For each name its value, and the number of values it counts as."""
        self.values = 0

    def document(self) -> Any:
        """The value of the only document; None for an empty text."""
        import yaml

        found, documents = None, 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise InputError(
                        f"line {_line(event)}: a second document begins; write one document"
                    )
                found = self.value(next(self.events), 0)
        return found

    def value(self, event: Any, depth: int) -> Any:
        """The value that begins with an event, whose last event is read too."""
        import yaml

        if depth > DEEPEST:
            raise InputError(f"line {_line(event)}: is nested more than {DEEPEST} levels deep")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise InputError(
                    f"line {_line(event)}: *{event.anchor} stands for nothing; define it before "
                    f"with &{event.anchor}"
                )
            value, size = self.anchors[event.anchor]
            self._count(size, event)
            return value
        before = self.values
        self._count(1, event)
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._list(event, depth)
        else:
            value = self._mapping(event, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.values - before
        return value

    def _list(self, start: Any, depth: int) -> list[Any]:
        import yaml

        _no_tag(start)
        items: list[Any] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self.value(event, depth + 1))
        return items

    def _mapping(self, start: Any, depth: int) -> dict[str, Any]:
        import yaml

        _no_tag(start)
        lines: dict[str, int] = {}
        values: dict[str, Any] = {}
        merged: list[Any] = []
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = _key(event)
            if key in lines:
                raise InputError(
                    f"key {key!r} stands twice, in line {lines[key]} and in line {_line(event)}; "
                    "remove one"
                )
            lines[key] = _line(event)
            value = self.value(next(self.events), depth + 1)
            if key == _MERGE and event.implicit[0]:
                merged = _mappings(value, event)
            else:
                values[key] = value
        for other in reversed(merged):  # the first of several wins, and the mapping's own keys
            values = {**other, **values}
        return values

    def _count(self, more: int, event: Any) -> None:
        self.values += more
        if self.values > MOST_VALUES:
            raise InputError(
                f"line {_line(event)}: more than {MOST_VALUES:,} values, counting aliases as what "
                "they stand for; write a smaller file"
            )


def _mappings(value: Any, event: Any) -> list[Any]:
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in found):
        raise InputError(f"line {_line(event)}: << must be followed by a mapping or a list of them")
    return found


def _key(event: Any) -> str:
    import yaml

    if not isinstance(event, yaml.ScalarEvent):
        raise InputError(f"line {_line(event)}: a key must be a word, not a list or a mapping")
    return _text(event)


def _scalar(event: Any) -> Any:
    """A switch, a number, nothing or text, by its spelling; quoted values are text."""
    text = _text(event)
    if not event.implicit[0]:  # quoted, a block, or with a tag
        return text
    if text in _NULL:
        return None
    if text.lower() in _SWITCHES:
        return _SWITCHES[text.lower()]
    if text.lower() in _UNUSUAL:
        return float(_UNUSUAL[text.lower()])
    if _INTEGER.fullmatch(text) or _HEX.fullmatch(text):
        return _integer(text, event)
    if _FLOAT.fullmatch(text):
        return _float(text, event)
    return text


def _text(event: Any) -> str:
    _no_tag(event)
    found = control_character(event.value)
    if found:
        raise InputError(f"line {_line(event)}: has a control character ({found}); remove it")
    return event.value


def _no_tag(event: Any) -> None:
    if event.tag is not None and event.tag not in _TAGS:
        raise InputError(
            f"is not valid YAML: line {_line(event)}: the tag {event.tag!r} is not "
            "allowed; remove it"
        )


def _integer(text: str, event: Any) -> int:
    _short(text, event)
    digits = text.lstrip("+-").replace("_", "")
    if not digits.startswith("0x") and len(digits) > 1 and digits.startswith("0"):
        raise InputError(
            f"line {_line(event)}: {text} has a leading zero, which some programs read as base 8; "
            f"write {digits.lstrip('0') or '0'}"
        )
    return int(text.replace("_", ""), 16 if digits.startswith("0x") else 10)


def _float(text: str, event: Any) -> float:
    _short(text, event)
    number = float(text.replace("_", ""))
    if number in (float("inf"), float("-inf")):
        raise InputError(f"line {_line(event)}: {text} is too large; write a finite number")
    return number


def _short(text: str, event: Any) -> None:
    if len(text) > LONGEST_NUMBER:
        raise InputError(
            f"line {_line(event)}: {text[:12]}… is a number of {len(text)} characters, at most "
            f"{LONGEST_NUMBER} are read"
        )


def _line(event: Any) -> int:
    return event.start_mark.line + 1
