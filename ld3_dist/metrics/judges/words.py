"""The words of a tokenizer: of a folder without its files, `transformers` opens an empty one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import InputError

ADDED = 2
"""Words that a network may know beyond its tokenizer's, such as BLIP's [DEC] and [ENC]."""


def check_words(tokenizer: Any, place: Path, known: int) -> None:
    """Raise InputError where a tokenizer has other words than a network knows.

    Args:
        place: the folder of both, for the message.
        known: number of words that the network knows.
    """
    count = len(tokenizer)
    if not known - ADDED <= count <= known:
        raise InputError(
            f"the tokenizer of {place} has {count:,} words, the network knows {known:,}; copy the "
            "files of its own tokenizer into the folder"
        )
