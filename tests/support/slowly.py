"""Cases of a test of which the suite runs some; `make test-slow` runs the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """The values as parameters, those that are not `quick` marked slow.

    Raises ValueError for a quick value that is not among them.
    """
    values = list(values)
    if absent := [value for value in quick if value not in values]:
        raise ValueError(f"not among the cases: {absent}")
    several = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        value if value in quick else pytest.param(*parts, marks=pytest.mark.slow)
        for value, parts in zip(values, several, strict=True)
    ]
