"""From a YAML file to an Experiment, or to one message that names file, key, value and remedy."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..core.errors import InputError
from .settings import Experiment


def load_experiment(path: str | Path) -> Experiment:
    """Read an experiment file. Raises InputError for anything in it that cannot be used."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the path of an experiment's YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not text in UTF-8; give the path of an experiment's YAML file"
        ) from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    return parse_experiment(data, str(path))


def parse_experiment(data: Any, source: str = "experiment") -> Experiment:
    """Validate already parsed settings; `source` is what messages call them."""
    if not isinstance(data, dict):
        raise InputError(
            f"{source}: must hold keys like models, solvers and nfe, got {type(data).__name__}"
        )
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        # a list whose only entry is wrong counts as too short as well; the entry's own complaint
        # says it all
        details = [d for d in error.errors() if d["type"] != "too_short" or not d["input"]]
        lines = [f"{source}: {_explain(detail)}" for detail in details]
        raise InputError("\n".join(dict.fromkeys(lines))) from None


def _explain(detail: Any) -> str:
    """One pydantic complaint as: key = value: what is wrong; remedy."""
    # a union's complaint carries the branch's name in its path; the user wrote only keys and
    # indices
    place = [part for part in detail["loc"] if isinstance(part, int) or not _is_branch(part)]
    key = ".".join(map(str, place)) or "experiment"
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        known = _keys_at(place[:-1])
        near = get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        return (
            f"unknown key {key!r}: "
            + (f"did you mean {near[0]!r}? " if near else "")
            + f"known here: {', '.join(known)}"
        )
    if kind == "missing":
        return f"key {key!r} is missing; add it"
    if kind == "too_short":
        return f"{key}: is empty; give at least {detail['ctx']['min_length']} value"
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(value, dict | list | BaseModel) else f" = {value!r}"
    return f"{key}{shown}: {message[0].lower()}{message[1:]}" if place else message


def _is_branch(part: str) -> bool:
    return part in ("Range", "int", "float", "str", "bool") or "[" in part


def _keys_at(place: list[Any]) -> list[str]:
    """The known keys of the model at a path of keys and indices."""
    model: Any = Experiment
    for part in place:
        if isinstance(part, str) and part in getattr(model, "model_fields", {}):
            model = _inner_model(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_inner_model, getattr(annotation, "__args__", ())) if m), None)
