"""A diffusers pipeline from a folder, from the hub, or offline from the hub's cache.

Missing files are found quickly, before anything is loaded: a folder's parts are compared with its
index, and the hub is asked once. No code of a folder is ever executed: parts are classes of
diffusers and transformers, and weights are read from safetensors files, or from pickles with
`weights_only`.
"""

from __future__ import annotations

import inspect
import logging
import textwrap
import warnings
from pathlib import Path
from typing import Any

from ...core.errors import InputError
from ...core.text import parse_json, read_text
from ..weights import check_whole
from .parts import check_network_class, check_not_quantised
from .weights import NETWORKS, load_networks, variants_of

log = logging.getLogger("ld3_dist")

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
OPTIONAL = ("text_encoder_3", "tokenizer_3")
RECTIFIED = "RectifiedFlowPipeline"
"""Class of InstaFlow's pipelines (Liu et al. 2023).

They have the parts of Stable Diffusion and a network of rectified flow, see `parametrisation`.
"""
LIBRARIES = ("diffusers", "transformers", "ld3_dist.integrations.diffusers")
"""Libraries that a part's class may come from, besides the modules of diffusers' pipelines."""
MOST_LAYERS, LARGEST = 1000, 100_000_000
"""Largest number of layers, and largest other number, in a network's configuration."""
MOST_STEPS = 1_000_000
"""Largest num_train_timesteps of a scheduler."""


def load_pipeline(name: str, variant: str | None = None) -> tuple[Any, bool]:
    """The pipeline of a folder or hub id, on the CPU, and True if it is InstaFlow's.

    diffusers has no class for InstaFlow's pipelines.

    Args:
        variant: the set of weight files, such as "fp16"; see ModelOptions.

    Raises InputError for a name that is no pipeline, or that cannot be loaded.
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
        variant = _choose_variant(folder, variant, [*absent])
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError(f"diffusers model {name!r}: there is no such folder")
    place, silence = (str(folder), None) if folder.is_dir() else (name, unreachable(name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cached: dict[str, Any] = {"local_files_only": silence is not None}
            index: Any = diffusers.DiffusionPipeline.load_config(place, **cached)
            check_network_class(index, f"diffusers:{name}")
            rectified = index.get("_class_name") == RECTIFIED
            kind = diffusers.StableDiffusionPipeline if rectified else diffusers.DiffusionPipeline
            chosen = {} if variant is None else {"variant": variant}
            if not folder.is_dir():
                place = kind.download(place, **cached, **chosen)
            networks = load_networks(Path(place), index, absent, variant)
            pipeline = kind.from_pretrained(place, **cached, **absent, **chosen, **networks)
    except InputError:
        raise
    # network, authentication, files: each layer of the library has its own exceptions
    except Exception as error:
        reason = silence or str(error) or type(error).__name__
        reason = textwrap.shorten(reason, 300, placeholder=" …")
        if folder.is_dir():
            raise InputError(
                f"diffusers model {name!r}: its folder cannot be loaded: {reason}"
            ) from error
        more = "" if variant is None else f", variant {variant!r}"
        raise InputError(
            f"diffusers model {name!r}{more}: no such folder here, and the hub could not deliver "
            f"it ({reason}); download it where there is a network and give the folder"
        ) from error
    for part in NETWORKS:  # variants hold half precision, in which not every CPU computes
        loaded = getattr(pipeline, part, None)
        if loaded is not None:
            told = getattr(loaded.config, "quantization_config", None)
            check_not_quantised(told, f"diffusers model {name!r}, {part}")
            if part not in networks:
                check_whole(loaded, (), f"diffusers model {name!r}, {part}")
            loaded.float()
    return pipeline, rectified


def unreachable(name: str) -> str | None:
    """The reason that the hub does not answer, found in one attempt; None if it does.

    Without the hub, its cache still serves. The library itself tries six times, for half a minute.
    Its
    environment counts: HF_HUB_OFFLINE, HF_ENDPOINT, HF_HUB_ETAG_TIMEOUT.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(
            hf_hub_url(name, "model_index.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except HfHubHTTPError:  # any answer will do; the loader judges it
        return None
    # of the HTTP library, the operating system, the hub's offline mode
    except Exception as error:  # noqa: BLE001
        return str(error) or type(error).__name__
    return None


def _check_folder(folder: Path) -> dict[str, None]:
    """Parts to load as None: those that never matter here, and optional text encoders.

    The folder may lack the text encoders. Raises InputError for other parts that are missing.
    """
    import diffusers

    index = folder / "model_index.json"
    parts = _read_object(index, "give the folder of a whole pipeline")
    listed = [
        part for part, value in parts.items() if isinstance(value, list) and value[:1] != [None]
    ]
    for part in listed:
        if part in UNUSED:
            continue
        _check_library(index, part, parts[part])
        if not (folder / part).is_dir():
            raise InputError(
                f"{index}: lists {part!r}, but {folder / part} does not exist; download it too"
            )
        if part in NETWORKS:
            _check_config(folder / part / "config.json")
    check_network_class(parts, f"diffusers:{folder}")
    if "scheduler" in listed:
        _check_steps(folder / "scheduler" / "scheduler_config.json")
    said = parts.get("_class_name")
    name = "StableDiffusionPipeline" if said == RECTIFIED else said
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type):
        raise InputError(
            f"{index}: _class_name is {said!r}, which is no pipeline of diffusers "
            f"{diffusers.__version__}; update diffusers, or give another folder"
        )
    expected = inspect.signature(kind).parameters
    return {
        part: None
        for part in expected
        if part in UNUSED or (part in OPTIONAL and part not in listed)
    }


def _check_library(index: Path, part: str, named: list[Any]) -> None:
    """Refuse a part whose class comes from any other place than LIBRARIES.

    The loader imports every module that an index names, and a folder must not choose code to run.
    """
    import diffusers

    library = named[0] if len(named) == 2 and isinstance(named[0], str) else None
    known = library in LIBRARIES or (library and hasattr(diffusers.pipelines, library))
    if not known or not isinstance(named[1], str):
        raise InputError(
            f"{index}: the part {part!r} is {named!r}; only classes of {', '.join(LIBRARIES)} are "
            f"loaded, and nothing was executed"
        )


def _check_config(file: Path) -> None:
    """Refuse a network's configuration that is quantised, or has numbers so large that building it
    would not end.
    """

    def check(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                check(name, inner)
        elif isinstance(value, list):
            for inner in value[:MOST_LAYERS]:
                check(key, inner)
            if len(value) > MOST_LAYERS and "block" in key:
                raise InputError(f"{file}: {key} lists {len(value)} blocks, at most {MOST_LAYERS}")
        elif isinstance(value, int) and not isinstance(value, bool):
            most = MOST_LAYERS if "layers" in key or "blocks" in key else LARGEST
            if abs(value) > most:
                raise InputError(f"{file}: {key} is {value}, at most {most:,} is built")

    if file.is_file():
        config = _read_object(file, "download it again")
        check_not_quantised(config.get("quantization_config"), str(file))
        check("", config)


def _check_steps(file: Path) -> None:
    """Refuse a number of steps for which the library would fill the memory."""
    steps = _read_object(file, "download it too").get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
        raise InputError(
            f"{file}: num_train_timesteps is {steps!r}; it must be a whole number from 1 to "
            f"{MOST_STEPS:,}"
        )


def _read_object(file: Path, remedy: str) -> dict[str, Any]:
    try:
        content = parse_json(read_text(file, "the file of a pipeline"))
    except InputError as error:
        text = str(error)
        where = "" if str(file) in text else f"{file}: "
        raise InputError(f"{where}{text}; {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no JSON object; {remedy}")
    return content


def _choose_variant(folder: Path, asked: str | None, absent: list[str]) -> str | None:
    """The variant to load: the one asked for, or the only one if a part has no plain weights.

    Raises InputError naming a part that has no weights, or none of the variant.
    """
    found = {
        part: variants_of(folder / part)
        for part in NETWORKS
        if (folder / part).is_dir() and part not in absent
    }
    chosen: set[str] = set()
    for part, variants in found.items():
        if not variants:
            raise InputError(
                f"{folder / part}: holds no weights (*.safetensors or *.bin); download them too"
            )
        if asked is not None and asked not in variants and None not in variants:
            have = ", ".join(sorted(repr(v) for v in variants if v))
            raise InputError(
                f"{folder / part}: has no weights of variant {asked!r}, only {have}; give one of "
                f"them as variant"
            )
        if asked is None and None not in variants:
            chosen |= {v for v in variants if v}
    if asked is not None:
        if not any(asked in variants for variants in found.values()):
            raise InputError(f"{folder}: no part has weights of variant {asked!r}; remove variant")
        return asked
    if len(chosen) > 1:
        raise InputError(
            f"{folder}: has weights in the variants {', '.join(map(repr, sorted(chosen)))} and no "
            f"plain ones; give one of them as variant"
        )
    for variant in chosen:
        log.info("%s: has no plain weights; its variant %s is used", folder, variant)
        return variant
    return None
