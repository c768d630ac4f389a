"""Provenance of embedded weights: a JSON file beside them that says how they were made."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..weights import sha256_of


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write one JSON object, indented, with a newline at the end."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def add_to(file: Path, key: str, facts: dict[str, Any]) -> None:
    """Set one key of a JSON file; other keys stay."""
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), key: facts})


def device_name(device: str) -> str:
    """The processor, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"


def write_provenance(
    net: nn.Module, file: Path, kind: str, source: dict[str, str], facts: dict[str, Any], on: str
) -> str:
    """Write the provenance of a weights file beside it, and return a line about the file.

    Args:
        source: the training data: `data` in words, and `data_sha256`.
        facts: command, settings and figures of the training.
        on: device of the training.
    """
    record = {
        "kind": kind,
        "file": file.name,
        "sha256": sha256_of(file),
        "bytes": file.stat().st_size,
        "parameters": sum(p.numel() for p in net.parameters()),
        **source,
        **facts,
        "device": device_name(on),
        "torch": torch.__version__,
    }
    write_json(file.with_suffix(".json"), record)
    return f"{file}  {record['bytes']} bytes  sha256 {record['sha256']}"
