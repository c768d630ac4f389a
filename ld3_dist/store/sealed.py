"""Tensors in a safetensors file that says what it holds, and is verified when it is read.

The header has one key with a JSON object in it: `about`, which names what the tensors are, and a
digest of both. A file that is cut short, changed, or put under another's name is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..core.errors import InputError
from .pairs import content_digest

FORMAT = 1
_KEY = "ld3_dist"


def seal(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """The bytes of a file with these tensors."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = {"format": FORMAT, "about": dict(about)}
    header["digest"] = content_digest(header, plain)
    return save(plain, metadata={_KEY: json.dumps(header, sort_keys=True)})


def unseal(
    data: bytes, about: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of a file and its tensors, verified.

    Args:
        about: what it must be about, if that is known.

    Raises InputError, which does not name the file, for anything else.
    """
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        found, version, digest = header["about"], header["format"], header["digest"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"is truncated or of another kind ({type(error).__name__})") from error
    if version != FORMAT or not isinstance(found, dict):
        raise InputError(f"has format {version!r}, not {FORMAT}")
    if digest != content_digest(header, tensors):
        raise InputError("its content does not match its digest")
    if about is not None and found != json.loads(json.dumps(dict(about))):
        raise InputError("was made for something else")
    return found, tensors
