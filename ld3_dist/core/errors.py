"""The one exception for bad input: it names what was wrong, where it came from, and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used; the message is all they need to mend it (exit code 2,
    no traceback).
    """


def unknown(what: str, value: object, known: list[str] | tuple[str, ...]) -> InputError:
    """'unknown solver "uni-pc": did you mean unipc-3? One of …'."""
    from difflib import get_close_matches

    near = get_close_matches(str(value), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {what} {value!r}: {hint}one of {', '.join(known)}")
