"""Provenance of results: versions, commit, machine, time."""

from __future__ import annotations

import os
import socket
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import torch

from .. import __version__
from ..store.process import node_address


@lru_cache
def provenance() -> dict[str, str | None]:
    """Versions and commit, for every row and every schedule file."""
    return {
        "version": __version__,
        "torch_version": torch.__version__,
        "git_commit": _git_commit(),
    }


def default_device() -> str:
    """cuda if this process sees such a device, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def where(device: str | None = None) -> dict[str, str]:
    """The machine (name and address) and the device that do the work."""
    device = device or default_device()
    name = f"cuda: {torch.cuda.get_device_name()}" if device.startswith("cuda") else device
    return {"host": socket.gethostname(), "address": node_address(), "device": name}


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_commit() -> str | None:
    """Commit of the working copy that this package runs from; None outside of one.

    The environment variable LD3_DIST_COMMIT goes first, because images are built without a
    repository.
    """
    if commit := os.environ.get("LD3_DIST_COMMIT"):
        return commit
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
