"""An option that a model has no use for is refused when it is opened, not ignored."""

from __future__ import annotations

from typing import Any

import pytest

from ld3_dist import InputError, load_model

GIVEN: dict[str, Any] = {
    "negative_prompt": "blurry",
    "size": (16, 16),
    "shift": 3.0,
    "variant": "fp16",
}


@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize("model", ["digits", "digits-flow", "fashion", "analytic:mixture-2d"])
def test_options_of_pipelines(model: str, option: str) -> None:
    with pytest.raises(InputError, match=rf"{model}.*{option}=.*does not apply"):
        load_model(model, **{option: GIVEN[option]})
