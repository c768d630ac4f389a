"""Output folders of format 3 with a few rows, losses of single samples, and what is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import write_table

SETTINGS: dict[str, Any] = {
    "name": "first",
    "seed": 0,
    "distance": "l2",
    "loss_space": "data",
    "teacher": {"solver": "unipc-3", "nfe": 20},
    "learn": {"epochs": 5},
}
SAMPLES = 200
EVAL_START = 10**9


def learned(
    key: str, trial: str, seed: int, loss: float, nfe: int = 4, **values: Any
) -> dict[str, Any]:
    """A learned row of the cell m/c/ddim/<nfe>."""
    settings = {"learn": {"epochs": 5}, "seed": seed, "start": "karras"}
    row = {
        "key": key, "kind": "learned", "status": "ok", "cell": f"m/c/ddim/{nfe}", "trial": trial,
        "model": "m", "model_hash": "ab", "conditioning": "class", "guidance": 1.0,
        "solver": "ddim", "nfe": nfe, "start": "karras", "seed": seed, "distance": "l2",
        "teacher": "t", "valid_pairs": 50, "train_pairs": 50, "valid_loss": loss,
        "train_loss": loss, "knots": [2.0, 1.0], "evals": [2.0], "settings": json.dumps(settings),
        "train_curve": [0.5, loss], "valid_curve": [1.0, 0.75, loss], "experiment": "e1",
    }  # fmt: skip
    return row | values


def baseline(key: str, loss: float, nfe: int = 4, start: str = "karras", **values: Any) -> dict:
    """A hand-made grid of the cell m/c/ddim/<nfe>."""
    row = learned(key, "", 0, loss, nfe, start=start)
    for name in ("trial", "seed", "settings", "train_curve", "valid_curve", "train_loss"):
        row[name] = None
    return row | {"kind": "baseline"} | values


def write_folder(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    losses: dict[str, np.ndarray] | None = None,
    settings: dict[str, Any] | None = None,
    asked: dict[str, Any] | None = None,
    fingerprint: str = "e1",
    evaluation: str = "v1",
    start: int = EVAL_START,
) -> Path:
    """A folder whose current experiment asks for all of its rows, unless `asked` says otherwise."""
    storage = open_storage(folder)
    for row in rows:
        write_table(storage, "rows", row["key"], [row])
    for key, values in (losses or {}).items():
        name = f"{key}-{evaluation}"
        shared = {"key": key, "evaluation": evaluation}
        kind = next(row["kind"] for row in rows if row["key"] == key)
        cell = next(row["cell"] for row in rows if row["key"] == key)
        score = shared | {"kind": kind, "cell": cell, "samples": len(values)}
        score |= {"eval_loss": float(values.mean()), "fid": 100 * float(values.mean())}
        write_table(storage, "evaluations", name, [score])
        parts = shared | {"repeat": 0, "start": start, "losses": values.tolist()}
        write_table(storage, "losses", name, [parts])
    everything = {
        "trials": sorted({row["trial"] for row in rows if row["trial"]}),
        "members": sorted({(row["seed"], row["start"]) for row in rows if row["trial"]}),
        "baselines": [row["key"] for row in rows if row["kind"] == "baseline"],
        "complete": True,
    }
    body = {
        "format": 3, "fingerprint": fingerprint, "name": (settings or SETTINGS)["name"],
        "settings": settings or SETTINGS, "identity": {}, "labels": ["m"], "models": {"m": "ab"},
        "first_run": "2026-11-26T10:00:00Z", "last_run": "2026-11-26T11:00:00Z",
        "asked": asked or everything, "evaluation": [evaluation],
    }  # fmt: skip
    storage.write_bytes(f"experiments/{fingerprint}.json", json.dumps(body).encode())
    claim = {"format": 3, "current": fingerprint}
    storage.write_bytes("experiment.json", json.dumps(claim).encode())
    return folder


def tailed(seed: int, scale: float = 1.0, count: int = SAMPLES) -> np.ndarray:
    """Heavy-tailed losses in float32."""
    values = scale * np.random.default_rng(seed).lognormal(0, 1, count)
    return values.astype(np.float32)
