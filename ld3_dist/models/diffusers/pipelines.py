"""A diffusers pipeline from a folder, from the hub, or from the hub's cache where the network is
away.

What can be missing is found out before anything is loaded, and quickly: a folder's parts are
compared with its index, and the hub is asked once."""

from __future__ import annotations

import inspect
import json
import textwrap
import warnings
from pathlib import Path
from typing import Any

from ...core.errors import InputError

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
OPTIONAL = ("text_encoder_3", "tokenizer_3")
RECTIFIED = "RectifiedFlowPipeline"
"""Stable Diffusion's parts, a network of rectified flow (InstaFlow, Liu et al. 2023): see
`process.py`.
"""


def load_pipeline(name: str) -> tuple[Any, bool]:
    """(pipeline of a folder or hub id, on the CPU; whether it is InstaFlow's, a class that
    diffusers does not have).

    Raises InputError where it is not one, or cannot be had.
    """
    try:
        import diffusers
    except ImportError as error:
        raise InputError(
            "diffusers models need the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
        ) from error
    folder = Path(name).expanduser()
    absent: dict[str, None] = {}
    if folder.is_dir():
        absent = _check_folder(folder)
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError(f"diffusers model {name!r}: there is no such folder")
    place, silence = (str(folder), None) if folder.is_dir() else (name, unreachable(name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cached = {"local_files_only": silence is not None}
            index: Any = diffusers.DiffusionPipeline.load_config(place, **cached)
            rectified = index.get("_class_name") == RECTIFIED
            kind = diffusers.StableDiffusionPipeline if rectified else diffusers.DiffusionPipeline
            return kind.from_pretrained(place, **cached, **absent), rectified
    except (
        Exception
    ) as error:  # network, authentication, files: each library layer has its own exceptions
        reason = (
            textwrap.shorten(silence or str(error), 160, placeholder=" …") or type(error).__name__
        )
        if folder.is_dir():
            raise InputError(
                f"diffusers model {name!r}: its folder cannot be loaded: {reason}"
            ) from error
        raise InputError(
            f"diffusers model {name!r}: no such folder here, and the hub could not deliver it "
            f"({reason}); "
            "download it where there is a network and give the folder"
        ) from error


def unreachable(name: str) -> str | None:
    """Why the hub does not answer, found out in one attempt; what is in the cache still serves.
    None where it does.

    The library itself tries six times, half a minute. Its environment counts: HF_HUB_OFFLINE,
    HF_ENDPOINT, HF_HUB_ETAG_TIMEOUT."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(
            hf_hub_url(name, "model_index.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except HfHubHTTPError:  # an answer; what it says is the loader's business
        return None
    # of the HTTP library, the operating system, the hub's offline mode
    except Exception as error:  # noqa: BLE001
        return str(error) or type(error).__name__
    return None


def _check_folder(folder: Path) -> dict[str, None]:
    """Parts to load as None: those that never matter here, and optional text encoders that the
    folder does without.
    """
    import diffusers

    index = folder / "model_index.json"
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{index}: missing or not JSON ({error}); give the folder of a whole pipeline"
        ) from error
    listed = [
        part for part, value in parts.items() if isinstance(value, list) and value[:1] != [None]
    ]
    for part in listed:
        if part not in UNUSED and not (folder / part).is_dir():
            raise InputError(
                f"{index}: lists {part!r}, but {folder / part} does not exist; download it too"
            )
    name = (
        "StableDiffusionPipeline"
        if parts.get("_class_name") == RECTIFIED
        else str(parts.get("_class_name"))
    )
    expected = inspect.signature(getattr(diffusers, name, object)).parameters
    return {
        part: None
        for part in expected
        if part in UNUSED or (part in OPTIONAL and part not in listed)
    }
