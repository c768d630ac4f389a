"""`schema.json`, the one description of a schedule file, and the check of a file against it.

The schema is JSON Schema (draft 2020-12) and is published as it lies here. The check knows the few
keywords that it uses, needs no other package, and says in words which key is wrong. A test compares
it with an independent implementation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from ..core.errors import InputError, unknown

KEYWORDS = {
    "type", "properties", "required", "additionalProperties", "items", "minItems",
    "minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength",
    "$schema", "title", "description",
}  # fmt: skip
"""The keywords that the check understands; the last three are for readers."""

_WORDS = {
    "integer": "a whole number",
    "number": "a finite number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "keys and values",
    "null": "null",
}


@lru_cache
def schema() -> Mapping[str, Any]:
    """The content of `schema.json`."""
    return json.loads(
        files("ld3_dist.schedule").joinpath("schema.json").read_text(encoding="utf-8")
    )


def check_body(body: Any) -> None:
    """Check the content of a schedule file (lists, mappings, numbers, text).

    Raises InputError naming the first key that is wrong, its value and what it must be.
    """
    for complaint in _complaints(schema(), body, ""):
        raise complaint


def _complaints(rule: Mapping[str, Any], value: Any, key: str) -> Iterator[InputError]:
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(kind, value) for kind in kinds):
        wanted = " or ".join(_WORDS[kind] for kind in kinds)
        yield InputError(f"{key or 'the file'} must be {wanted}, got {_shown(value)}")
        return
    if isinstance(value, dict):
        yield from _of_mapping(rule, value, key)
    elif isinstance(value, list):
        if len(value) < rule.get("minItems", 0):
            yield InputError(f"{key} holds {len(value)} values, need at least {rule['minItems']}")
        for i, item in enumerate(value):
            yield from _complaints(rule.get("items", {}), item, f"{key}[{i}]")
    elif isinstance(value, str):
        yield from _of_text(rule, value, key)
    elif _is("number", value):
        yield from _of_number(rule, value, key)


def _of_mapping(
    rule: Mapping[str, Any], value: Mapping[str, Any], key: str
) -> Iterator[InputError]:
    known, rest = rule.get("properties", {}), rule.get("additionalProperties", {})
    for name in rule.get("required", ()):
        if name not in value:
            where = f"{key} has no key {name!r}" if key else f"key {name!r} is missing"
            yield InputError(f"{where}; add it")
    for name, item in value.items():
        if not isinstance(name, str):
            yield InputError(f"{key}: the key {name!r} must be text")
        elif name in known:
            yield from _complaints(known[name], item, f"{key}.{name}".lstrip("."))
        elif rest is False:
            yield unknown("key", name, tuple(known))
        else:
            yield from _complaints(rest, item, f"{key}.{name}".lstrip("."))


def _of_text(rule: Mapping[str, Any], value: str, key: str) -> Iterator[InputError]:
    if len(value) < rule.get("minLength", 0):
        yield InputError(f"{key} is empty; give it a value")
    if len(value) > rule.get("maxLength", math.inf):
        yield InputError(
            f"{key} has {len(value)} characters, at most {rule['maxLength']} are allowed"
        )


def _of_number(rule: Mapping[str, Any], value: float, key: str) -> Iterator[InputError]:
    if value < rule.get("minimum", -math.inf):
        yield InputError(f"{key} = {_shown(value)}: must be at least {rule['minimum']}")
    if value > rule.get("maximum", math.inf):
        yield InputError(f"{key} = {_shown(value)}: must be at most {rule['maximum']}")
    if value <= rule.get("exclusiveMinimum", -math.inf):
        yield InputError(f"{key} = {_shown(value)}: must be above {rule['exclusiveMinimum']}")


def _is(kind: str, value: Any) -> bool:
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "string":
        return isinstance(value, str)
    if kind == "array":
        return isinstance(value, list)
    if kind == "object":
        return isinstance(value, dict)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind == "integer":
        return isinstance(value, int)
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
