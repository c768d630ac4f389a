"""Arguments of calls in Python: an open model, its own teacher pairs, one value or several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import ld3_dist as ld3
from ld3_dist.core.errors import InputError
from ld3_dist.core.learning.pairs import Pairs

QUICK: dict[str, Any] = {"starts": ["karras"], "epochs": 1, "baselines": ("karras",)}


def learn(model: Any, pairs: Any, **more: Any) -> Any:
    return ld3.learn(model, "ddim", 2, pairs, **(QUICK | more))


@pytest.fixture(scope="module")
def digits() -> Any:
    return ld3.load_model("digits")


@pytest.fixture(scope="module")
def pairs(digits: Any) -> Pairs:
    return ld3.teach(digits, 4, teacher="ddim/4/karras")


def test_pairs_of_another_model_of_the_same_shape(digits: Any, pairs: Pairs) -> None:
    flow = ld3.load_model("digits-flow")
    assert flow.shape == digits.shape
    for given in ((pairs, None), (ld3.teach(flow, 4, teacher="ddim/4/uniform"), pairs)):
        with pytest.raises(InputError, match=r"another model \(weights .*teach\(model\) makes"):
            learn(flow, given[0], valid=given[1])
        with pytest.raises(InputError, match="another model"):
            next(ld3.learning(flow, "ddim", 2, *given))


def test_pairs_of_another_guidance(pairs: Pairs) -> None:
    guided = ld3.load_model("digits", guidance=3.0)
    with pytest.raises(InputError, match=r"guidance 1\) .* guidance 3\)"):
        learn(guided, pairs)


@pytest.mark.parametrize("name", ["noise", "target"])
def test_pairs_of_another_shape(digits: Any, pairs: Pairs, name: str) -> None:
    other = replace(pairs, **{name: torch.zeros(4, 3, 8, 8)})
    with pytest.raises(InputError, match=rf"pairs: {name} has shape \[4, 3, 8, 8\], .* \[M, 1, 8"):
        learn(digits, other)


def test_pairs_keep_where_they_are_from(digits: Any, pairs: Pairs) -> None:
    assert pairs.origin
    parts = [pairs[:2], pairs[2:].to("cpu")]
    assert {part.origin for part in [*parts, Pairs.joined(parts)]} == {pairs.origin}
    unknown = replace(pairs, origin="")
    assert Pairs.joined([pairs, unknown]).origin == ""
    again = ld3.load_model("digits")  # the same weights, opened twice
    found = [learn(model, one) for model, one in ((again, pairs), (digits, unknown))]
    assert found[0].knots == found[1].knots


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("digits", r"model = 'digits': open it first: load_model\('digits'\)"),
        (torch.nn.Linear(2, 2), r"type Linear: .* Model\(denoiser\) wraps your own"),
        (None, "of type NoneType"),
    ],
)
def test_what_is_no_model(model: Any, said: str, digits: Any, pairs: Pairs) -> None:
    schedule = learn(digits, pairs)
    for call in (
        lambda: ld3.teach(model, 4),
        lambda: learn(model, pairs),
        lambda: next(ld3.learning(model, "ddim", 2, pairs)),
        lambda: ld3.evaluate(model, [schedule], 4),
        lambda: schedule.sample(model),
    ):
        with pytest.raises(InputError, match=said):
            call()


def test_what_are_no_pairs(digits: Any) -> None:
    with pytest.raises(InputError, match=r"type tuple: teach\(model\) makes them"):
        learn(digits, (torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 8)))


def test_no_samples(digits: Any, pairs: Pairs) -> None:
    with pytest.raises(InputError, match="n = 0: at least one sample"):
        learn(digits, pairs).sample(digits, n=0)


def test_one_value_stands_for_a_list_of_one(digits: Any, pairs: Pairs) -> None:
    first = learn(digits, pairs)
    assert learn(digits, pairs, starts="karras", baselines="karras").knots == first.knots
    assert learn(digits, pairs, starts=first).knots == learn(digits, pairs, starts=[first]).knots
    one = ld3.evaluate(digits, first, 4, metrics="fid")
    several = ld3.evaluate(digits, [first], 4, metrics=["fid"])
    assert one["eval_loss"].tolist() == several["eval_loss"].tolist()
    named = ld3.evaluate(digits, "karras", 4, solver="ddim", nfe=2, metrics=())
    assert named["name"].tolist() == ["teacher", "karras"]
