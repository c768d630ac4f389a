"""Reading a YAML file as an Experiment, or as messages that name file, key, value and remedy.

The text is read by `core.yaml_text`, its shape compared with the models of `settings` (`shape`),
and the values checked by the models themselves. This module turns their complaints into sentences:
it knows the kinds of complaint, not the settings.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..core.errors import InputError
from ..core.user_code import absolute
from ..core.yaml_text import load_yaml
from .axes import known_procedures, procedures_in
from .settings import Experiment
from .shape import Place, all_keys, complaints, dotted, known_keys, shown, unknown_key

WHAT = "an experiment's YAML file"

MOST_TOLD = 20
"""Mistakes that one message names; a file with more of them is no experiment."""

_PLAIN = {
    "must be float": "must be a number",
    "must be int": "must be a whole number",
    "must be bool": "must be true or false",
    "must be str": "must be a word",
}
_NAME = "use letters, digits, dots, dashes and underscores, and begin with a letter or a digit"


def load_experiment(path: str | Path) -> Experiment:
    """Read an experiment file. Raises InputError for anything in it that cannot be used."""
    return parse_experiment(load_yaml(path, WHAT), str(path))


def parse_experiment(data: Any, source: str = "experiment") -> Experiment:
    """Validate already parsed settings; `source` is what messages call them."""
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(
            f"{source}: must hold keys like models, solvers and nfe; "
            "experiments/quickstart.yaml shows them"
        )
    data = _with_whole_paths(data)
    try:
        known_procedures.set(procedures_in(data))
    except InputError as error:
        raise InputError(f"{source}: procedure: {error}") from error
    told = dict(complaints(Experiment, data))
    try:
        found = Experiment.model_validate(data)
    except ValidationError as error:
        for place, text in _explained(error, data):
            if not any(place[: len(known)] == known for known in told):
                told.setdefault(place, text)
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        # a check met a value of a shape that it does not expect; the shape is the mistake
        if not told:
            raise InputError(f"{source}: a value cannot be used ({error})") from error
    else:
        if not told:
            return found
    lines = list(dict.fromkeys(f"{source}: {text}" for text in told.values()))
    if len(lines) > MOST_TOLD:
        lines[MOST_TOLD:] = [f"{source}: and {len(lines) - MOST_TOLD} more mistakes"]
    raise InputError("\n".join(lines)) from None


def _with_whole_paths(data: Any) -> Any:
    """The data with the files of all names `python:FILE.py:NAME` as absolute paths.

    Relative ones are taken from the working folder, like every path of an experiment. Workers may
    have another working folder, so the paths are made whole once, here; on other machines the
    files must lie at the same place.
    """
    if isinstance(data, str):
        return absolute(data)
    if isinstance(data, list | tuple):
        return [_with_whole_paths(item) for item in data]
    if isinstance(data, dict):
        return {key: _with_whole_paths(value) for key, value in data.items()}
    return data


@contextlib.contextmanager
def blamed_on(source: str, key: str) -> Iterator[None]:
    """Name file and full key in front of the InputErrors of a block: a cause found later.

    A message that names the source already is left as it is.
    """
    try:
        yield
    except InputError as error:
        if source in str(error):
            raise
        raise InputError(f"{source}: {key}: {error}") from error


def _explained(error: ValidationError, data: Any) -> list[tuple[Place, str]]:
    """One sentence per place, without those that only say that another branch did not fit."""
    details: list[Any] = [(_place(detail, data), detail) for detail in error.errors()]
    found: dict[Place, str] = {}
    for place, detail in details:
        below = [
            other for other, one in details if one is not detail and other[: len(place)] == place
        ]
        kind = detail["type"]
        deeper = any(len(other) > len(place) for other in below)
        if (
            (below and kind.endswith(("_type", "_parsing")))
            or (below and kind == "too_short" and detail["input"])
            or (deeper and kind == "literal_error")
        ):
            continue
        # a list whose only entry is wrong counts as too short as well; the entry's own says it all
        text = _explain(place, detail, data)
        if place not in found or kind == "value_error":
            found[place] = text
    return list(found.items())


def _place(detail: Any, data: Any) -> Place:
    """Keys and indices as the user wrote them: a complaint's path holds names of branches too."""
    place: list[str | int] = []
    for part in detail["loc"]:
        among = range(len(data)) if isinstance(data, list | tuple) else data
        if isinstance(among, dict | range) and part in among:
            data = data[part]
        elif not (detail["type"] == "missing" and part == detail["loc"][-1]):
            continue
        place.append(part)
    return tuple(place)


def _explain(place: Place, detail: Any, data: Any) -> str:
    """One complaint of the models as: key = value: what is wrong; remedy."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    key = dotted(place)
    if kind == "extra_forbidden":
        return unknown_key(Experiment, known_keys(Experiment, place[:-1]), place)
    if kind == "missing":
        return f"key {key!r} is missing; add it"
    if kind == "value_error":
        return _own_words(place, value, detail["msg"].removeprefix("Value error, "), data)
    return f"{key}{shown(value)}: {_sentence(kind, value, context)}"


def _sentence(kind: str, value: Any, context: Any) -> str:
    """The fault of a value, and what to write instead."""
    if kind == "too_short":
        return f"is empty; give at least {context['min_length']} value"
    if kind == "too_long":
        return f"holds too many values; give at most {context['max_length']}"
    bounds = {
        "greater_than_equal": ("ge", "at least"),
        "greater_than": ("gt", "above"),
        "less_than_equal": ("le", "at most"),
        "less_than": ("lt", "below"),
    }
    if kind in bounds:
        name, word = bounds[kind]
        return f"must be {word} {context[name]:,}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = get_close_matches(str(value), choices, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{hint}one of {', '.join(choices)}"
    if kind == "string_pattern_mismatch":
        return _NAME
    if kind == "string_too_long":
        return f"has too many characters; at most {context['max_length']} are allowed"
    if kind == "finite_number":
        return "must be a finite number"
    if kind.startswith("int_parsing_size"):
        return "is too large a number"
    if kind.startswith("int_"):
        return "must be a whole number"
    if kind.startswith("float_"):
        return "must be a number"
    if kind.startswith("bool_"):
        return "must be true or false"
    if kind.startswith("string_"):
        return "must be a word"
    if kind in ("tuple_type", "list_type"):
        return f"must be a list; write [{value}]"
    return "cannot be used here; `ld3-dist schema` says what can"


def _own_words(place: Place, value: Any, message: str, data: Any) -> str:
    """A complaint of our own checks, with the full key in front."""
    for before, after in _PLAIN.items():
        message = re.sub(rf"{before}\b", after, message)
    first = re.match(r"([a-z_]+)(\.[a-z0-9_]+)*(?= = |: )", message)
    own = first[0] if first else ""
    if not place:
        ends = [key for key in _written(data) if own and key.endswith(f".{own}")]
        if own in data or len(ends) != 1:
            return message
        return ends[0].removesuffix(own) + message
    if own and f"{dotted([p for p in place if isinstance(p, str)])}.{own}" in _full_keys():
        return f"{dotted(place)}.{message}"
    return f"{dotted(place)}{shown(value)}: {message[0].lower()}{message[1:]}"


def _written(data: Any, place: Place = ()) -> list[str]:
    """The full keys that the user wrote."""
    if not isinstance(data, dict):
        return [dotted(place)]
    return [key for name, value in data.items() for key in _written(value, (*place, name))]


def _full_keys() -> set[str]:
    return set(all_keys(Experiment))
