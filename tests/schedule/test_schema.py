"""The schema of schedule files: one description, checked against an independent implementation."""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from schedules import coupled_schedule

from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import EDM, FlowMatching
from ld3_dist.schedule.file import FORMAT, Schedule, load_schedule, parse_schedule
from ld3_dist.schedule.schema import KEYWORDS, check_body, schema

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = [f for f in sorted(RESULTS.rglob("*.json")) if '"outputs"' in f.read_text()]
CHECK = jsonschema.validators.validator_for(dict(schema()))(dict(schema()))
BODY: dict[str, Any] = json.loads(coupled_schedule(EDM(), 3).to_json())
FLOW: dict[str, Any] = json.loads(coupled_schedule(FlowMatching(), 3).to_json())


def changed(path: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(BODY)
    *outer, last = path.split(".")
    place: Any = body
    for part in outer:
        place = place[int(part) if part.isdecimal() else part]
    place[int(last) if last.isdecimal() else last] = value
    return body


WRONG = [
    ("format", 0), ("format", -5), ("format", True), ("format", "2"), ("format", 1.5),
    ("format", None),
    ("prior_scale", 0), ("prior_scale", -1.0), ("prior_scale", "80"), ("prior_scale", True),
    ("prior_scale", None), ("prior_scale", [80.0]),
    ("knots", []), ("knots", [1.0]), ("knots", "many"), ("knots", None), ("knots.1", True),
    ("knots.1", "1"), ("knots.1", None), ("knots.1", [1.0]),
    ("evals", []), ("evals.0", -1.0), ("evals.0", None), ("state.1", "x"), ("state", {}),
    ("outputs", []), ("outputs.1", 3), ("outputs.1.0", None), ("outputs.1", []),
    ("noise", "edm"), ("noise", {}), ("noise", None), ("noise.name", 3), ("noise.name", ""),
    ("noise.t_min", "x"), ("noise.t_min", -1), ("noise.t_max", 0), ("noise.alpha", [1.0, "x"]),
    ("solver", 3), ("solver", ""), ("solver", None), ("nfe", "3"), ("nfe", 0), ("nfe", 10**9),
    ("nfe", True), ("nfe", 3.5), ("model", 3), ("model", ""), ("model", "m" * 6000),
    ("order", "3"), ("order", 0), ("order", True), ("prediction", 3), ("model_hash", 3),
    ("conditioning", 3), ("conditioning", ["class"]), ("guidance", "7"), ("guidance", -1),
    ("guidance", True), ("shift", "3"), ("shift", 0), ("shift", -3.0), ("shift", [1]),
    ("coefficients", "yes"), ("coefficients", 1), ("coefficients", None),
    ("losses", []), ("losses", 3), ("losses", {"valid_loss": "0.1"}), ("losses", {"a": True}),
    ("metrics", {"fid": [1]}), ("metrics", "none"), ("baselines", []), ("baselines", {"karras": 3}),
    ("baselines", {"karras": {"valid_loss": "x"}}), ("seeds", {"seed": "1"}), ("seeds", 3),
    ("seeds", {"seed": -1}), ("seeds", {"seed": 1.5}), ("versions", {"version": 1}),
    ("versions", "1"),
    ("experiment", 3), ("row", 3), ("row", ["a"]), ("surprise", 1),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG, ids=[f"{p}={v!r}"[:40] for p, v in WRONG])
def test_both_checks_refuse_the_same(path: str, value: Any) -> None:
    body = changed(path, value)
    with pytest.raises(jsonschema.ValidationError):
        CHECK.validate(body)
    with pytest.raises(InputError) as caught:
        parse_schedule(json.dumps(body))
    assert path.split(".")[0] in str(caught.value)
    assert "Traceback" not in str(caught.value)


FINE = [
    ("format", 1), ("prior_scale", 3), ("losses", {"valid_loss": None}), ("guidance", 0),
    ("guidance", None), ("shift", 3.0), ("seeds", {"seed": None}), ("versions", {"version": None}),
    ("noise.extra", [1, "a"]), ("row", None), ("nfe", 1000), ("order", None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), FINE, ids=[f"{p}={v!r}" for p, v in FINE])
def test_both_checks_accept_the_same(path: str, value: Any) -> None:
    body = changed(path, value)
    CHECK.validate(body)
    check_body(body)


def test_the_schema_is_one_and_says_what_the_class_has() -> None:
    jsonschema.Draft202012Validator.check_schema(dict(schema()))
    assert set(schema()["properties"]) == {f.name for f in fields(Schedule)}
    assert schema()["properties"]["format"]["maximum"] == FORMAT

    def keywords(rule: Any) -> set[str]:
        inner = [*rule.get("properties", {}).values(), rule.get("items", {})]
        rest = rule.get("additionalProperties")
        inner += [rest] if isinstance(rest, dict) else []
        return set(rule).union(*(keywords(one) for one in inner if one))

    assert keywords(schema()) <= KEYWORDS


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_schedules_are_valid(file: Path) -> None:
    CHECK.validate(json.loads(file.read_text()))
    loaded = load_schedule(file)
    CHECK.validate(json.loads(loaded.to_json()))


def test_there_are_committed_schedules() -> None:
    assert len(COMMITTED) > 10


def levels(alpha: list[float], sigma: list[float]) -> dict[str, Any]:
    """A file of a noise schedule that only its levels at the knots describe."""
    name = "python:somewhere:Noise"
    return changed("noise", {"name": name, "alpha": alpha, "sigma": sigma})


@pytest.mark.parametrize("end", [0.0, 1e-3])
def test_alpha_may_be_0_at_the_first_knot_and_sigma_at_the_last(end: float) -> None:
    body = levels([end, 0.2, 0.5, 1.0], [1.0, 0.8, 0.5, end])
    assert parse_schedule(json.dumps(body)).noise["sigma"][-1] == end


@pytest.mark.parametrize(
    ("body", "say"),
    [
        (changed("knots.0", 81.0), r"knots\[0\] = 81.0: lies outside the noise schedule edm"),
        (changed("knots.3", 0.001), r"knots\[3\] = 0.001: lies outside .* from 0.002 to 80"),
        (changed("evals.0", 90.0), r"evals\[0\] = 90.0: lies outside"),
        ({**FLOW, "evals": [1.2, *FLOW["evals"][1:]]}, r"evals\[0\] = 1.2: lies outside"),
        (changed("noise.name", "edn"), "unknown noise schedule 'edn': did you mean 'edm'"),
        (changed("noise.t_mxa", 3.0), "'t_mxa': did you mean 't_max'"),
        (changed("knots.1", 10**400), r"knots\[1\] must be a finite number|a number of 401"),
        (changed("noise", {"name": "edm", "alpha": [1.0] * 4}), "noise.alpha: .* are computed"),
        (levels([1.0, 1.0], [3.0, 2.0]), "noise.alpha holds 2 levels, need one per knot: 4"),
        (levels([0.1, 0.0, 0.5, 0.9], [0.9, 0.8, 0.5, 0.1]), r"noise\.alpha\[1\] = 0.0: a level"),
        (levels([0.1, 0.2, 0.5, 0.9], [0.0, 0.8, 0.5, 0.1]), r"noise\.sigma\[0\] = 0.0: a level"),
        (levels([0.1, 0.2, 0.5, 0.4], [0.9, 0.8, 0.5, 0.5]), r"from 1 to 0.8 at knots\[3\]"),
        (levels([0.1, 0.2, 0.5, -0.9], [0.9, 0.8, 0.5, 0.1]), r"noise\.alpha\[3\] = -0.9"),
    ],
)  # fmt: skip
def test_what_a_schema_cannot_say(body: dict[str, Any], say: str) -> None:
    with pytest.raises(InputError, match=say):
        parse_schedule(json.dumps(body))


def test_files_are_read_as_all_text_is(tmp_path: Path) -> None:
    text, file = json.dumps(BODY), tmp_path / "s.json"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_schedule(file).nfe == 3
    for content, say in (
        (text.encode("utf-16"), "UTF-16; save it in UTF-8"),
        (text.replace('"nfe": 3', '"nfe": 3, "nfe": 3').encode(), "key 'nfe' stands there twice"),
        (b"[" * 200_000, "brackets open at once"),
        (b"1" * 20_000, "number of 20000 characters"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=say) as caught:
            load_schedule(file)
        assert str(file) in str(caught.value)
    with pytest.raises(InputError, match="a device"):
        load_schedule("/dev/zero")


ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e300, 10**25, 10**99, "", "x", "x" * 9999, "\u2028",
    [], [[]], [None], [True], ["x"], [{}], [1e300] * 4, {}, {"x": 1}, {"name": "edm"},
    {"a": {"b": []}},
]  # fmt: skip


@pytest.mark.parametrize("key", [*BODY, "noise.name", "noise.t_max", "noise.alpha", "knots.1"])
def test_whatever_stands_at_a_key_is_taken_or_refused(key: str) -> None:
    for value in ODD:
        with contextlib.suppress(InputError):
            written = parse_schedule(json.dumps(changed(key, value))).to_json()
            CHECK.validate(json.loads(written))
