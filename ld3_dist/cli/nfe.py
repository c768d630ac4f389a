"""The option `--nfe`: one number of evaluations, or several for a curve."""

from __future__ import annotations

from ..core.errors import InputError


def parse_nfe(text: str) -> int | list[int]:
    """`--nfe 6`, `--nfe 4-10` or `--nfe 4,6,8-10`; a list for more than one number.

    Raises InputError for anything else.
    """
    from ..core.solver import MOST_NFE  # in a function: it loads torch

    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdecimal() and len(end) < 20 for end in ends):
            raise InputError(
                f"--nfe {text[:80]!r}: write one number, or several for a curve, as 4-10 or 4,6,8"
            )
        low, high = map(int, ends)
        if high > MOST_NFE:
            limit = f"must be at most {MOST_NFE}; few steps are the point"
            raise InputError(f"nfe = {high}: {limit} (--nfe {text[:80]})")
        if high < low:
            raise InputError(
                f"--nfe {text[:80]!r}: {part.strip()} must increase, as in {high}-{low}"
            )
        found.extend(range(low, high + 1))
    return found if "-" in text or "," in text else found[0]
