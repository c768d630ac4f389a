"""Extractors and metrics by name: the package's, a registered one, and one in a user's own file."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3_dist.core.errors import InputError
from ld3_dist.core.features import Extractor, FeatureMoments, Reference
from ld3_dist.metrics.extractors import extractors, model_reference, open_extractor
from ld3_dist.metrics.scores import (
    SCORES,
    NotMeasured,
    Samples,
    as_reference,
    metric_columns,
    metrics,
    score,
)
from ld3_dist.models import Model, open_model


@pytest.fixture(scope="module")
def digits() -> Model:
    return open_model("digits")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own() -> Extractor:
    return Extractor("halves", "1", lambda x: x.flatten(1)[:, :2] / 2)


def test_auto_is_what_the_model_brings(digits: Model) -> None:
    assert open_extractor("auto", digits) is digits.extractor
    mine = own()
    assert open_extractor("auto", replace(digits, extractor=mine)) is mine
    alone = replace(digits, extractor=None)  # 64 numbers are their own features
    found = open_extractor("auto", alone)
    assert found is not None
    assert found.name == "identity"
    assert open_extractor("auto", open_model("analytic:gaussian?shape=3x10x10")) is None
    assert open_extractor("none", digits) is None


def test_an_extractor_in_a_user_s_file(digits: Model, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = (
        "from ld3_dist.core.features import Extractor\n"
        "def open_mine(argument, model, device):\n"
        "    return Extractor('mine', 'x', lambda x: 2 * x.flatten(1))\n"
        "def wrong(argument, model, device):\n    return 3\n"
    )
    file.write_text(text)
    name = f"python:{file}:open_mine"
    found = open_extractor(name, digits)
    assert found is not None
    assert torch.equal(found.features(torch.ones(2, 1, 2, 2)), torch.full((2, 4), 2.0))
    file.write_text(text.replace("2 * x", "3 * x"))
    changed = open_extractor(name, digits)
    assert changed is not None
    assert changed.hash != found.hash  # other features under the same name are others
    with pytest.raises(InputError, match=r"returned int.*Extractor"):
        open_extractor(f"python:{file}:wrong", digits)
    with pytest.raises(InputError, match="did you mean 'open_mine'"):
        open_extractor(f"python:{file}:opn_mine", digits)


def test_a_registered_extractor_takes_an_argument(digits: Model) -> None:
    extractors.register(
        "scaled", lambda argument, model, device: Extractor("s", argument, lambda x: x.flatten(1))
    )
    try:
        found = open_extractor("scaled:3:4", digits)
        assert found is not None
        assert found.hash == "3:4"
    finally:
        del extractors._entries["scaled"]


def test_bad_extractor_names(digits: Model) -> None:
    for name, words in [
        ("identiti", "did you mean 'identity'"),
        ("inception", "inception:FILE"),
        ("identity:3", "nothing follows identity"),
        ("auto:3", "nothing follows auto"),
    ]:
        with pytest.raises(InputError, match=words):
            open_extractor(name, digits)
    with pytest.raises(InputError, match="hash is empty"):
        Extractor("mine", "", lambda x: x)


def test_the_reference_of_a_model(digits: Model) -> None:
    assert digits.extractor is not None
    assert digits.data is not None
    found = model_reference(digits, digits.extractor)
    assert found is not None
    assert (found.name, len(found.features)) == ("data of digits", 1797)  # type: ignore[arg-type]
    features = digits.extractor.features(digits.data).double()
    torch.testing.assert_close(found.moments.mean, features.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.moments.covariance, features.T.cov(), rtol=1e-4, atol=1e-6)

    statistics = Reference(FeatureMoments(torch.zeros(2), torch.eye(2)))
    brought = replace(digits, data=None, extractor=own(), reference=statistics)
    assert brought.extractor is not None
    kept = model_reference(brought, brought.extractor)
    assert kept is not None
    assert (kept.moments, kept.name) == (statistics.moments, "statistics of digits")
    other = open_extractor("identity", brought)
    assert other is not None
    assert model_reference(brought, other) is None  # they are of another extractor's features
    assert model_reference(replace(brought, reference=None), brought.extractor) is None


def test_a_score_that_cannot_be_measured_says_why() -> None:
    found = score(Samples(normal(0, 30, 3)), None)
    assert found.values == dict.fromkeys(SCORES)
    assert set(found.reasons) == set(SCORES)
    assert "no reference" in found.reasons["fid"]
    assert "class scores" in found.reasons["inception_score"]
    alone = score(normal(0, 30, 3), as_reference(normal(1, 30, 3)).moments)  # type: ignore[union-attr]
    assert alone.values["fid"] is not None
    assert "moments alone" in alone.reasons["kid_std"]
    few = score(normal(0, 4, 3), normal(1, 30, 3), ["recall", "fid"])
    assert tuple(few.values) == ("recall", "fid")
    assert "needs 6 samples" in few.reasons["recall"]


def test_overlaps_belong_to_their_reference() -> None:
    """What several metrics share is not carried over to another reference."""
    samples = Samples(normal(0, 40, 2))
    near, far = (as_reference(normal(1, 40, 2) + shift) for shift in (0.0, 50.0))
    first = score(samples, near, ["precision", "recall"]).values
    assert first["precision"] is not None
    assert first["precision"] > 0.5
    assert score(samples, far, ["precision"]).values == {"precision": 0.0}
    assert score(samples, near, ["recall", "precision"]).values == first


def gap(samples: Samples, reference: Reference | None) -> float:
    if reference is None:
        raise NotMeasured("it needs a reference")
    return float((samples.features.mean(0) - reference.moments.mean).norm())


def test_a_metric_of_one_s_own(tmp_path: Path) -> None:
    x, y = normal(0, 20, 3), normal(1, 30, 3)
    file = tmp_path / "mine.py"
    file.write_text(
        "def spread(samples, reference):\n"
        "    return {'low': samples.features.min(), 'high': float(samples.features.max())}\n"
    )
    metrics.register("gap", gap)
    try:
        found = score(x, y, ["fid", "gap", f"python:{file}:spread"])
        assert tuple(found.values) == (
            "fid",
            "metric.gap",
            "metric.spread.low",
            "metric.spread.high",
        )
        assert found.values["metric.gap"] == pytest.approx(float((x.mean(0) - y.mean(0)).norm()))
        assert found.values["metric.spread.high"] == float(x.max())
        assert found.reasons == {}
        assert score(x, None, ["gap"]).reasons == {"metric.gap": "it needs a reference"}
        assert metric_columns("gap") == ("metric.gap",)
        assert metric_columns("kid") == ("kid", "kid_std")
    finally:
        del metrics._entries["gap"]
    with pytest.raises(InputError, match="did you mean 'recall'"):
        score(x, y, ["recal"])


@pytest.mark.parametrize(
    ("value", "reason"),
    [(lambda: 1 / 0, "ZeroDivisionError"), (lambda: math.nan, "nan"), (lambda: "x", "ValueError")],
)
def test_a_metric_that_fails_leaves_its_column_empty(
    value: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.register("faulty", lambda samples, reference: value())
    try:
        with caplog.at_level(logging.WARNING):
            found = score(normal(0, 20, 3), normal(1, 20, 3), ["faulty", "fid"])
        assert found.values["metric.faulty"] is None
        assert reason in found.reasons["metric.faulty"]
        assert found.values["fid"] is not None
        assert ("faulty" in caplog.text) == (reason != "nan")
    finally:
        del metrics._entries["faulty"]
