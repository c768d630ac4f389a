"""The one exception for bad input: it names what was wrong, where it came from, and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says all they need to mend it. On the command line it is shown without a traceback,
    and the exit code is 2.
    """


def unknown(what: str, value: object, known: list[str] | tuple[str, ...]) -> InputError:
    """The error for a name that is not known: it suggests the nearest known one and lists all."""
    from difflib import get_close_matches

    near = get_close_matches(str(value), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {what} {value!r}: {hint}one of {', '.join(known)}")
