"""`--where`: rows by the values of their columns."""

from __future__ import annotations

import pandas as pd
import pytest

from ld3_dist.core.errors import InputError
from ld3_dist.report.only import only

RESULTS = pd.DataFrame(
    {
        "model": ["digits", "digits", "fashion", "fashion"],
        "nfe": pd.array([4, 6, 4, None], dtype="Int32"),
        "gamma": [0.001, 0.0, 1e-3, float("nan")],
        "coefficients": pd.array([True, False, None, True], dtype="boolean"),
        "knots": [[1.0, 0.5], [1.0], None, [2.0]],
    }
)


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        ([], [0, 1, 2, 3]),
        (["model=fashion"], [2, 3]),
        (["model=fashion,digits"], [0, 1, 2, 3]),
        (["nfe=4"], [0, 2]),
        (["nfe=4.0"], [0, 2]),
        (["nfe=none"], [3]),
        (["gamma=1e-3"], [0, 2]),
        (["gamma=0"], [1]),
        (["gamma=none"], [3]),
        (["coefficients=true"], [0, 3]),
        (["coefficients=False, none"], [1, 2]),
        (["model=digits", "nfe=6"], [1]),
    ],
)
def test_rows_that_meet_all_conditions_stay(conditions: list[str], rows: list[int]) -> None:
    assert list(only(RESULTS, conditions).index) == rows


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("model", "give COLUMN=VALUE"),
        ("model=", "give COLUMN=VALUE"),
        ("=digits", "give COLUMN=VALUE"),
        ("modle=digits", "did you mean 'model'?"),
        ("knots=1", "unknown column in --where: 'knots'"),
        ("model=faschion", "--where model=faschion: no row has it; there are digits, fashion"),
        ("nfe=5", "no row has it; there are 4, 6, none"),
    ],
)
def test_what_no_row_can_meet_is_named(condition: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        only(RESULTS, [condition])
    assert said in str(error.value)


def test_a_long_list_of_values_is_cut() -> None:
    many = pd.DataFrame({"seed": range(1000)})
    with pytest.raises(InputError, match=r"18, 19, …$"):
        only(many, ["seed=-1"])
