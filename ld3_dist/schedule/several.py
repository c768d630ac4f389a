"""A single value where a list of them is taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..models import Model
from .file import Schedule


def several(values: Any) -> Sequence[Any]:
    """The values as a list; a name, a path, a number, a model or a schedule is one value.

    >>> several("karras"), several(("karras", "dmn"))
    (['karras'], ['karras', 'dmn'])
    """
    single = isinstance(values, str | os.PathLike | int | float | Model | Schedule)
    return [values] if single else list(values)
