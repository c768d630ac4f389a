"""The shape of an experiment: which keys stand where, and what kind of value each takes.

It is read from the models of `settings`, so that there is one description. `complaints` compares
what a user wrote with it, before the values themselves are checked: unknown keys, lists where one
value belongs and the reverse, empty entries, switches where numbers belong.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from ..core.learning.procedure import procedures
from . import axes

Place = tuple[str | int, ...]
"""Keys and indices from the top of the file."""

ANY = frozenset({"list", "mapping", "switch", "whole", "number", "text", "null"})


def dotted(place: Sequence[str | int]) -> str:
    """The full key, as messages name it: "models.0.model"."""
    return ".".join(map(str, place))


def shown(value: Any) -> str:
    """A value as YAML has it; nothing for lists and mappings."""
    if isinstance(value, bool):
        return f" = {str(value).lower()}"
    if value is None or isinstance(value, list | tuple | dict | BaseModel):
        return ""
    text = repr(value)
    return f" = {text}" if len(text) <= 80 else f" = {text[:77]}…"


def complaints(annotation: Any, data: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Places where data differ in shape from an annotation, with what to write instead."""
    if data is None and "null" in _kinds(annotation):
        return
    wrong = _wrong_kind(_kinds(annotation), data, place)
    if wrong:
        yield place, f"{dotted(place)}{shown(data)}: {wrong}"
    elif isinstance(data, Mapping):
        yield from _in_mapping(annotation, data, place)
    elif isinstance(data, list | tuple):
        for i, item in enumerate(data):
            if item is None:
                key = dotted((*place, i))
                yield (*place, i), f"{key}: is empty; write a value after the dash, or remove it"
            else:
                yield from complaints(_item(annotation), item, (*place, i))


def known_keys(annotation: Any, place: Place) -> tuple[str, ...]:
    """The keys that may stand in the mapping at a place; () where any may."""
    own = _open_sections().get(dotted(place))
    if own:
        return own
    keys: dict[str, Any] = {}
    for model in _models(annotation):
        keys |= _fields(model)
    return tuple(keys)


def unknown_key(top: Any, here: tuple[str, ...], place: Place) -> str:
    """The message for a key that is not known at its place; near ones of all sections are named."""
    key, section = str(place[-1]), dotted(place[:-1])
    found = [(_likeness(key, name) + 0.1, name, "") for name in here]
    for path in all_keys(top):
        outer, _, name = path.rpartition(".")
        if outer != section:
            found.append((_likeness(key, name), path, outer))
    best = max(found, key=lambda one: one[0], default=(0.0, "", ""))
    text = f"unknown key {dotted(place)!r}: "
    if best[0] >= 0.7 and best[2] and best[1].endswith(f".{key}"):
        others = [path for score, path, outer in found if outer and path.endswith(f".{key}")]
        return f"{text}it belongs under {' or '.join(others[:3])}"
    hint = f"did you mean {best[1]!r}? " if best[0] >= 0.6 else ""
    return f"{text}{hint}known here: {', '.join(here)}"


def all_keys(top: Any, place: Place = ()) -> list[str]:
    """Full keys of an annotation, without the indices of lists, sections before what they hold."""
    found = []
    for name in known_keys(top, place):
        found.append(dotted((*place, name)))
    for model in _models(top):
        for name, annotation in _fields(model).items():
            inner = _item(annotation) if "list" in _kinds(annotation) else annotation
            if _models(inner) or dotted((*place, name)) in _open_sections():
                found += all_keys(inner, (*place, name))
    return list(dict.fromkeys(found))


def _open_sections() -> dict[str, tuple[str, ...]]:
    """Sections whose keys are no fields of a model, with these keys."""
    learned = axes.settings_of(axes.known_procedures.get() or procedures.names())
    searchable = (*learned, *axes.OTHER_AXES)
    places = ("search.grid", "search.optuna", "ablate.base", "ablate.vary")
    return {"learn": learned, **dict.fromkeys(places, searchable)}


def _in_mapping(
    annotation: Any, data: Mapping[Any, Any], place: Place
) -> Iterator[tuple[Place, str]]:
    here = known_keys(annotation, place)
    models = _models(annotation)
    values = _values(annotation)
    for key, value in data.items():
        inner = (*place, key)
        if here and key not in here:
            yield inner, unknown_key(_top(), here, inner)
            continue
        choices = [_fields(model)[key] for model in models if key in _fields(model)]
        if values is not None:
            choices.append(values)
        if not choices:
            continue
        if value is None and not any("null" in _kinds(choice) for choice in choices):
            yield inner, f"{dotted(inner)}: is empty; give it a value, or remove the key"
            continue
        every = [list(complaints(choice, value, inner)) for choice in choices]
        if all(every):
            yield from min(every, key=len)


def _top() -> Any:
    from .settings import Experiment

    return Experiment


def _wrong_kind(kinds: frozenset[str], value: Any, place: Place) -> str:
    """Advice for a value of a kind that does not belong there; "" for one that does."""
    if isinstance(value, bool):
        kind = "switch"
    elif isinstance(value, int):
        kind = "number" if "number" in kinds else "whole"
    elif isinstance(value, float):
        kind = "whole" if "number" not in kinds and "whole" in kinds else "number"
    elif isinstance(value, str):
        kind = "text"
    else:
        kind = "list" if isinstance(value, list | tuple) else "mapping"
    if kind in kinds or not kinds:
        return ""
    if kind == "list":
        return _one_value(kinds, place)
    if kinds <= {"list", "null"}:
        what = "a list of entries" if kind == "mapping" else f"a list; write [{_plain(value)}]"
        return f"must be {what}"
    if kind == "mapping" and place == ("distance",):
        return ""  # weights by name
    if kind == "mapping":
        return "must be one value, not keys of its own"
    if kinds <= {"mapping", "null"}:
        keys = known_keys(_at(_top(), place), place)
        return f"must hold keys of its own: {', '.join(keys)}"
    return _other_value(kinds, kind, value)


def _one_value(kinds: frozenset[str], place: Place) -> str:
    numbers = "number" if kinds & {"whole", "number"} and "text" not in kinds else "value"
    if kinds <= {"mapping", "null"}:
        return f"must hold keys of its own: {', '.join(known_keys(_at(_top(), place), place))}"
    several = ""
    if place[0] == "learn" or place[-1] in ("distance", "start"):
        name = place[-1]
        if name in _open_sections()["search.grid"]:
            several = f"; several belong under search.grid.{name}"
    if place and isinstance(place[-1], int):
        return f"is a list inside a list; give one {numbers}"
    return f"is a list; give one {numbers} here{several}"


def _other_value(kinds: frozenset[str], kind: str, value: Any) -> str:
    if kinds & {"whole", "number"}:
        wanted = "a whole number" if "number" not in kinds else "a number"
        if kind == "text" and _reads_as_number(value):
            return f"must be {wanted}; write it without quotes"
        return f"must be {wanted}"
    if "switch" in kinds:
        words = {"yes": "true", "on": "true", "no": "false", "off": "false"}
        advice = words.get(str(value).lower())
        return f"must be true or false{f'; write {advice}' if advice else ''}"
    if "text" in kinds:
        return f"must be a word; write it in quotes if it is one: '{_plain(value)}'"
    if "list" in kinds:
        return f"must be a list, or keys of its own; write [{_plain(value)}]"
    return "is of a kind that does not belong here; `ld3-dist schema` says what does"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _likeness(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower()).ratio()


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without its Annotated wrappers."""
    annotation = getattr(annotation, "__value__", annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _parts(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [part for one in get_args(annotation) for part in _parts(one)]
    return [annotation]


def _kinds(annotation: Any) -> frozenset[str]:
    found: set[str] = set()
    names = {bool: "switch", int: "whole", float: "number", str: "text", type(None): "null"}
    for part in _parts(annotation):
        origin = get_origin(part) or part
        if part in names:
            found.add(names[part])
        elif origin is Literal:
            found |= {names[type(value)] for value in get_args(part)}
        elif origin in (dict, Mapping) or is_dataclass(origin):
            found.add("mapping")
        elif isinstance(origin, type) and issubclass(origin, BaseModel):
            # a shorthand may turn any other kind into the mapping
            found |= ANY - {"null", "list"} if _has_shorthand(origin) else {"mapping"}
        elif isinstance(origin, type) and issubclass(origin, list | tuple | set | frozenset):
            found.add("list")
        else:
            return ANY
    return frozenset(found)


def _has_shorthand(model: type[BaseModel]) -> bool:
    validators = model.__pydantic_decorators__.model_validators.values()
    return any(validator.info.mode != "after" for validator in validators)


def _models(annotation: Any) -> list[Any]:
    found = []
    for part in _parts(annotation):
        if isinstance(part, type) and (issubclass(part, BaseModel) or is_dataclass(part)):
            found.append(part)
    return found


def _fields(model: Any) -> dict[str, Any]:
    """Names and annotations of the fields of a model or a dataclass."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    hints = get_type_hints(model, include_extras=True)
    return {field.name: hints[field.name] for field in fields(model) if field.init}


def _item(annotation: Any) -> Any:
    """The annotation of a list's items; Any where it is no list."""
    for part in _parts(annotation):
        if "list" in _kinds(part) and get_args(part):
            return get_args(part)[0]
    return Any


def _values(annotation: Any) -> Any:
    """The annotation of the values of a mapping without fixed keys; None where there is none."""
    for part in _parts(annotation):
        if get_origin(part) in (dict, Mapping):
            return get_args(part)[1]
    return None


def _at(annotation: Any, place: Place) -> Any:
    """The annotation at a place."""
    for part in place:
        if isinstance(part, int):
            annotation = _item(annotation)
            continue
        fields_here = {k: v for model in _models(annotation) for k, v in _fields(model).items()}
        annotation = fields_here.get(part, _values(annotation) or Any)
    return annotation
