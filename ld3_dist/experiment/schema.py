"""The JSON Schema of an experiment's YAML, made from the models of `settings`.

Editors complete and check a file whose first line names it:

    # yaml-language-server: $schema=path/to/schema.json

`schema.json` beside this module is `as_json()` where no other package adds names; a test keeps it
current. A schema cannot say everything: what spans several keys is checked on reading, and the
messages of `reading` are the ones to go by.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

from ..core.distance import distances
from ..core.learning.procedure import procedures
from ..core.solver import solvers
from ..core.user_code import PREFIX
from ..metrics.extractors import extractors
from ..metrics.judges import judges
from ..metrics.of_samples import DISTANCE
from ..metrics.scores import metrics
from ..models import families
from ..schedule.starts import starts
from .axes import OTHER_AXES, settings_of
from .settings import NAME_PATTERN, Experiment

Schema = dict[str, Any]

NAME = "schema.json"
"""Name of the file of the package that holds the schema."""

DRAFT = "https://json-schema.org/draft/2020-12/schema"

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_NUMBERS = ("integer", "number")
_KEYWORDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}
"""Bounds that pydantic leaves in its own words where a check of ours comes first."""
_OWN = f"^{PREFIX}"
_SECTIONS = (("search", "grid"), ("search", "optuna"), ("ablate", "base"), ("ablate", "vary"))


def experiment_schema() -> Schema:
    """The schema, with every name that is registered here: those of installed packages too."""
    made = Experiment.model_json_schema()
    defs: Schema = made.pop("$defs")
    kinds = ("solver", "start", "member_start", "distance", "model")
    defs |= {kind: _names(kind) for kind in kinds}
    defs |= {kind: _names(kind) for kind in ("extractor", "metric")}
    made = _tidied(made)
    defs = {name: _tidied(rule) for name, rule in defs.items()}
    short = defs["ModelSettings"]
    defs["ModelSettings"] = {"anyOf": [{"$ref": "#/$defs/model"}, short]}
    made["properties"]["name"]["pattern"] = NAME_PATTERN
    values = _values()
    defs |= {_place(name): rule for name, rule in values.items()}
    one = {name: {"$ref": f"#/$defs/{_place(name)}"} for name in values}
    several = {name: _several(rule) for name, rule in one.items()}
    numeric = [name for name, rule in values.items() if rule.get("type") in _NUMBERS]
    either = {name: {"anyOf": [several[name], {"$ref": "#/$defs/Range"}]} for name in numeric}
    search, ablate = defs["Search"]["properties"], defs["Ablate"]["properties"]
    learned = settings_of(procedures.names())
    made["properties"]["learn"]["properties"] = {name: one[name] for name in learned}
    search["grid"]["properties"] = several
    search["optuna"]["properties"] = several | either
    ablate["base"]["properties"] = one
    ablate["vary"]["properties"] = several
    for name in ("models", "solvers", "nfe", "baselines"):
        made["properties"][name]["uniqueItems"] = True
    head = {"$schema": DRAFT, "title": "Experiment of ld3_dist"}
    return head | made | _known_settings(values) | {"$defs": defs}


def as_json() -> str:
    """The schema as the text of a file."""
    return json.dumps(experiment_schema(), indent=2, ensure_ascii=False) + "\n"


def _names(kind: str) -> Schema:
    """The names of a kind, for completion, and the forms that a name may have besides."""
    table: dict[str, tuple[Iterable[str], str]] = {
        "solver": (solvers, r"\?|-bh2$"),
        "start": (starts, r"^file:.|\.json$|^poly-[0-9.]+$"),
        "member_start": (starts, r"^file:.|\.json$|^(later:)?poly-[0-9.]+$|^later:."),
        "distance": (distances, r"[+*:@]"),
        "model": (("digits", "digits-flow", "fashion"), f"^({'|'.join(families)}):"),
        "extractor": ((n for n in extractors if n != "inception"), f"^({'|'.join(extractors)}):."),
        "metric": ((*metrics, *judges), f"^({'|'.join((*judges, DISTANCE))}):."),
    }
    names, other = table[kind]
    rule: list[Schema] = [{"enum": list(names)}]
    rule.append({"type": "string", "pattern": other if other == _OWN else f"{_OWN}|{other}"})
    if kind == "distance":
        rule.append({"type": "object", "additionalProperties": {"type": "number"}})
    return {"anyOf": rule}


def _tidied(rule: Any) -> Any:
    """The rule with references in place of marks for names, and without pydantic's own titles."""
    if isinstance(rule, list):
        return [_tidied(item) for item in rule]
    if not isinstance(rule, dict):
        return rule
    if isinstance(rule.get("names"), str):
        rest = {name: item for name, item in rule.items() if name not in ("names", "type", "title")}
        return {"$ref": f"#/$defs/{rule['names']}"} | rest
    kept = {
        _KEYWORDS.get(name, name): _tidied(item)
        for name, item in rule.items()
        if name != "allow_inf_nan" and not (name == "title" and isinstance(item, str))
    }
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    return kept


def _place(setting: str) -> str:
    """The key of `$defs` that holds the schema of one value of a setting or an axis."""
    return f"value of {setting}".replace(" ", "-")


def _values() -> dict[str, Schema]:
    """The schema of one value of every setting of learning and every other axis."""
    found = {name: setting_schema(name) for name in settings_of(procedures.names())}
    found["procedure"] = {
        "anyOf": [{"enum": list(procedures.names())}, {"type": "string", "pattern": _OWN}],
        "description": found["procedure"]["description"],
        "default": "default",
    }
    whole: Schema = {"type": "integer", "minimum": 1}
    others: dict[str, Schema] = {
        "start": {"$ref": "#/$defs/member_start"},
        "distance": {"$ref": "#/$defs/distance"},
        "pairs.train": {"type": "integer", "minimum": 2},
        "teacher.solver": {"$ref": "#/$defs/solver"},
        "teacher.nfe": whole,
        "teacher.start": {"$ref": "#/$defs/start"},
        "guidance": {"type": "number", "minimum": 0},
    }
    return found | {name: others[name] for name in OTHER_AXES}


def setting_schema(name: str) -> Schema:
    """The schema of a setting of learning: what any procedure accepts.

    The default is that of the first procedure that has the setting; others stand in its
    description.
    """
    fields = {}
    for procedure in procedures.names():
        known = {f.name: f for f in dataclasses.fields(procedures.get(procedure).Config)}
        if name in known:
            fields[procedure] = known[name]
    first, *rest = fields.values()
    rule: Schema = {"type": _TYPES[type(first.default)], "default": first.default}
    text = str(first.metadata["meaning"])
    for procedure, field in list(fields.items())[1:]:
        if field.default != first.default and name != "procedure":
            text += f"; {field.default} in procedure {procedure}"
    choices = [choice for field in fields.values() for choice in field.metadata["choices"]]
    if choices:
        rule["enum"] = list(dict.fromkeys(choices))
    if rule["type"] in _NUMBERS:
        rule |= _bounds([field.metadata for field in (first, *rest)])
    return rule | {"description": text}


def _bounds(limits: list[Any]) -> Schema:
    """The weakest bounds of several fields."""
    low, below = min(one["low"] for one in limits), max(one["below"] for one in limits)
    rule: Schema = {"exclusiveMinimum": 0} if 0 < low < 1 else {"minimum": low}
    return rule | ({"exclusiveMaximum": below} if math.isfinite(below) else {})


def _several(one: Schema) -> Schema:
    """A list of values."""
    return {"type": "array", "minItems": 1, "uniqueItems": True, "items": one}


def _known_settings(values: dict[str, Schema]) -> Schema:
    """Refuse unknown settings, where no procedure of a user's own is named that may have them."""
    own: Schema = {"type": "string", "pattern": _OWN}
    named = {"anyOf": [own, {"type": "array", "contains": own}]}
    inner: Schema = {"properties": {"procedure": named}, "required": ["procedure"]}
    cases: list[Schema] = [{"properties": {"learn": inner}, "required": ["learn"]}]
    only: dict[str, Schema] = {}
    for outer, section in _SECTIONS:
        deep = {"properties": {section: inner}, "required": [section]}
        cases.append({"properties": {outer: deep}, "required": [outer]})
        names = {"propertyNames": {"enum": list(values)}}
        only.setdefault(outer, {"properties": {}})["properties"][section] = names
    only["learn"] = {"propertyNames": {"enum": list(settings_of(procedures.names()))}}
    return {"if": {"not": {"anyOf": cases}}, "then": {"properties": only}}
